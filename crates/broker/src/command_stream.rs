//! Consuming messages from a queue.

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::message::Message;
use super::{BrokerError, with_timeout};

/// A consumer stream ended unexpectedly: the connection was lost or the queue was deleted.
#[derive(Debug, thiserror::Error)]
#[error("broker: connection lost: {0}")]
pub struct ConnectionLost(pub String);

/// A stream of messages from one consumer.
pub struct CommandStream {
    channel: Channel,
    consumer: Consumer,
}

impl CommandStream {
    pub(super) async fn start(channel: Channel, queue: &str, prefetch: u16) -> Result<Self, BrokerError> {
        with_timeout("set the prefetch count", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let consumer =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = with_timeout("consume commands", consumer).await?;
        Ok(Self { channel, consumer })
    }

    /// Waits for the next message. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ConnectionLost`] if the stream has ended.
    pub async fn next(&mut self) -> Result<Message, ConnectionLost> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(Message::new(delivery)),
            Some(Err(error)) => Err(ConnectionLost(error.to_string())),
            None => Err(ConnectionLost("consumer cancelled".to_owned())),
        }
    }

    /// Cancels the consumer. Messages that were already delivered can still be settled.
    pub async fn stop(&self) {
        // An error is ignored: a lost connection delivers no further message either.
        let _ = with_timeout(
            "cancel the consumer",
            self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()),
        )
        .await;
    }
}
