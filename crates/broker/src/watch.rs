//! Watching the events of jobs, for `submit --wait`.

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::consumer::Lost;
use super::delivery;
use super::topology::{DEAD_LETTER, EVENTS};
use super::{BrokerError, answered};

/// What comes of commands from now on. The broker removes its queue when this connection ends.
pub struct Watch {
    /// Kept open for the consumer.
    _channel: Channel,
    consumer: Consumer,
}

/// Something that became of a command.
#[derive(Debug)]
pub enum Watched {
    /// An event's body.
    Event(Vec<u8>),
    /// A command went to the dead letters.
    DeadLetter {
        /// The command's body.
        body: Vec<u8>,
        /// Why.
        reason: String,
    },
}

impl Watch {
    pub(super) async fn start(channel: Channel) -> Result<Self, BrokerError> {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue =
            answered("declare a queue", channel.queue_declare("".into(), options, FieldTable::default())).await?;
        let name = queue.name().clone();
        for (exchange, key) in [(EVENTS, "assets.generation.*"), (DEAD_LETTER, "")] {
            let options = QueueBindOptions::default();
            let bound = channel.queue_bind(name.clone(), exchange.into(), key.into(), options, FieldTable::default());
            answered("bind a queue", bound).await?;
        }
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer =
            answered("deliver events", channel.basic_consume(name, "".into(), options, FieldTable::default())).await?;
        Ok(Self { _channel: channel, consumer })
    }

    /// What comes next.
    ///
    /// # Errors
    ///
    /// [`Lost`] where there will be nothing more.
    pub async fn next(&mut self) -> Result<Watched, Lost> {
        match self.consumer.next().await {
            Some(Ok(delivery)) if delivery.exchange.as_str() == DEAD_LETTER => {
                let reason = delivery::reason(&delivery.properties).unwrap_or_else(|| "for no given reason".to_owned());
                Ok(Watched::DeadLetter { body: delivery.data, reason })
            }
            Some(Ok(delivery)) => Ok(Watched::Event(delivery.data)),
            Some(Err(error)) => Err(Lost(error.to_string())),
            None => Err(Lost("the consumer was cancelled".to_owned())),
        }
    }
}
