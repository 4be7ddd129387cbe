//! Watching events and dead letters, for `submit --wait` and the HTTP API.

use domain::event::EventKind;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::command_stream::ConnectionLost;
use super::message;
use super::topology::{DEAD_LETTER_EXCHANGE, EVENTS_EXCHANGE};
use super::{BrokerError, with_timeout};

/// Exchanges and routing keys of all events and dead letters.
pub(super) const ALL: &[(&str, &str)] = &[(EVENTS_EXCHANGE, "assets.generation.*"), (DEAD_LETTER_EXCHANGE, "")];
/// Those of the events that are not terminal.
pub(super) const PROGRESS: &[(&str, &str)] =
    &[(EVENTS_EXCHANGE, EventKind::Started.as_str()), (EVENTS_EXCHANGE, EventKind::Progress.as_str())];

/// Receives events of all jobs, and dead-lettered commands, from now on.
///
/// Its queue is exclusive: the broker deletes it when the connection closes.
pub struct EventWatcher {
    /// Kept open because the consumer needs it.
    _channel: Channel,
    consumer: Consumer,
}

/// A message received by [`EventWatcher`].
#[derive(Debug)]
pub enum WatchedMessage {
    /// The body of an event.
    Event(Vec<u8>),
    /// A command was dead-lettered.
    DeadLetter {
        /// The command's body.
        body: Vec<u8>,
        /// Why it was dead-lettered.
        reason: String,
    },
}

impl EventWatcher {
    pub(super) async fn start(
        channel: Channel,
        bindings: &[(&'static str, &'static str)],
    ) -> Result<Self, BrokerError> {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue =
            with_timeout("declare a queue", channel.queue_declare("".into(), options, FieldTable::default())).await?;
        let name = queue.name().clone();
        for (exchange, key) in bindings.iter().copied() {
            let options = QueueBindOptions::default();
            let bound = channel.queue_bind(name.clone(), exchange.into(), key.into(), options, FieldTable::default());
            with_timeout("bind a queue", bound).await?;
        }
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer =
            with_timeout("consume events", channel.basic_consume(name, "".into(), options, FieldTable::default()))
                .await?;
        Ok(Self { _channel: channel, consumer })
    }

    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// [`ConnectionLost`] if the stream has ended.
    pub async fn next(&mut self) -> Result<WatchedMessage, ConnectionLost> {
        match self.consumer.next().await {
            Some(Ok(delivery)) if delivery.exchange.as_str() == DEAD_LETTER_EXCHANGE => {
                let reason =
                    message::rejection_reason(&delivery.properties).unwrap_or_else(|| "no reason given".to_owned());
                Ok(WatchedMessage::DeadLetter { body: delivery.data, reason })
            }
            Some(Ok(delivery)) => Ok(WatchedMessage::Event(delivery.data)),
            Some(Err(error)) => Err(ConnectionLost(error.to_string())),
            None => Err(ConnectionLost("consumer cancelled".to_owned())),
        }
    }
}
