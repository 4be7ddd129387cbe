//! Watching the events of jobs, for `submit --wait`.

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::consumer::Lost;
use super::topology::EVENTS;
use super::{BrokerError, answered};

/// The events from now on. The broker removes their queue when this connection ends.
pub struct Watch {
    /// Kept open for the consumer.
    _channel: Channel,
    consumer: Consumer,
}

impl Watch {
    pub(super) async fn start(channel: Channel) -> Result<Self, BrokerError> {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue =
            answered("declare a queue", channel.queue_declare("".into(), options, FieldTable::default())).await?;
        let name = queue.name().clone();
        let bound = channel.queue_bind(
            name.clone(),
            EVENTS.into(),
            "assets.generation.*".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        answered("bind a queue", bound).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer =
            answered("deliver events", channel.basic_consume(name, "".into(), options, FieldTable::default())).await?;
        Ok(Self { _channel: channel, consumer })
    }

    /// The body of the next event.
    ///
    /// # Errors
    ///
    /// [`Lost`] where there will be none.
    pub async fn next(&mut self) -> Result<Vec<u8>, Lost> {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Ok(delivery.data),
            Some(Err(error)) => Err(Lost(error.to_string())),
            None => Err(Lost("the consumer was cancelled".to_owned())),
        }
    }
}
