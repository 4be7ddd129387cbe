//! Taking commands from their queue.

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::delivery::Message;
use super::{BrokerError, answered};

/// The stream of commands ended unasked: broker or queue went away.
#[derive(Debug, thiserror::Error)]
#[error("the broker was lost: {0}")]
pub struct Lost(pub String);

/// The commands of one connection.
pub struct Commands {
    channel: Channel,
    consumer: Consumer,
}

impl Commands {
    pub(super) async fn consume(channel: Channel, queue: &str, prefetch: u16) -> Result<Self, BrokerError> {
        answered("bound what it delivers", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let consumer =
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = answered("deliver commands", consumer).await?;
        Ok(Self { channel, consumer })
    }

    /// The next command. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Lost`] where there will be none.
    pub async fn next(&mut self) -> Result<Message, Lost> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(Message::new(delivery)),
            Some(Err(error)) => Err(Lost(error.to_string())),
            None => Err(Lost("the consumer was cancelled".to_owned())),
        }
    }

    /// Takes no further command. What was delivered can still be settled.
    pub async fn stop(&self) {
        // A broker that is gone delivers nothing more either.
        let _ = answered("stop", self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default())).await;
    }
}
