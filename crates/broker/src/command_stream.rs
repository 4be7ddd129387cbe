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

/// A stream of messages from one queue, over one channel.
pub struct CommandStream {
    channel: Channel,
    queue: String,
    /// `None` before the first [`start`](Self::start).
    consumer: Option<Consumer>,
}

impl CommandStream {
    /// Creates a stream that has not started.
    pub(super) fn new(channel: Channel, queue: &str) -> Self {
        Self { channel, queue: queue.to_owned(), consumer: None }
    }

    /// Starts a consumer with at most `prefetch` unsettled messages. May be called again after [`stop`](Self::stop).
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker does not accept it.
    pub async fn start(&mut self, prefetch: u16) -> Result<(), BrokerError> {
        with_timeout("set the prefetch count", self.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consuming = self.channel.basic_consume(self.queue.as_str().into(), "".into(), options, arguments);
        self.consumer = Some(with_timeout("consume commands", consuming).await?);
        Ok(())
    }

    /// Waits for the next message; waits forever if the stream was never started. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ConnectionLost`] if the consumer has ended: it was stopped, the connection was lost, or the queue was deleted.
    pub async fn next(&mut self) -> Result<Message, ConnectionLost> {
        let Some(consumer) = &mut self.consumer else { return std::future::pending().await };
        match consumer.next().await {
            Some(Ok(delivery)) => Ok(Message::new(delivery)),
            Some(Err(error)) => Err(ConnectionLost(error.to_string())),
            None => Err(ConnectionLost("consumer cancelled".to_owned())),
        }
    }

    /// Cancels the consumer. Messages that the broker had sent before can still be received and settled.
    pub async fn stop(&self) {
        let Some(consumer) = &self.consumer else { return };
        // An error is ignored: a lost connection delivers no further message either.
        let cancelling = self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        let _ = with_timeout("cancel the consumer", cancelling).await;
    }
}
