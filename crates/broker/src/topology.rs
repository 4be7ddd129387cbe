//! Names and declarations of exchanges and queues.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ErrorKind, ExchangeKind};

use super::{BrokerError, with_timeout};

pub(super) const COMMANDS_EXCHANGE: &str = "assets.commands";
/// The routing key of commands.
pub const GENERATE_KEY: &str = "generate";
/// The routing key of requests to cancel a job.
pub(super) const CANCEL_KEY: &str = "cancel";
pub(super) const CANCEL_QUEUE: &str = "assets.cancel";
pub(super) const GENERATE_QUEUE: &str = "assets.generate";
/// Where commands are consumed from, by OpenTelemetry's convention for RabbitMQ: exchange, routing key and queue.
pub const CONSUME_DESTINATION: &str = "assets.commands:generate:assets.generate";
pub(super) const EVENTS_EXCHANGE: &str = "assets.events";
pub(super) const DEAD_LETTER_EXCHANGE: &str = "assets.dead-letter";
pub(super) const DEAD_LETTER_QUEUE: &str = "assets.generate.dead";
/// Queue with a copy of every dead letter, in which workers find those that the broker itself dead-lettered.
pub(super) const DELIVERY_LIMIT_QUEUE: &str = "assets.generate.fallen";
/// The delivery limit of the command queue: the broker dead-letters a command when a delivery after this many earlier
/// ones is not settled either, for example one that crashes the worker each time.
///
/// A command of a known job is published again before that, so that lost connections do not add up.
pub(super) const DELIVERY_LIMIT: u32 = 2;

/// The exchanges and queues that are declared on each connection.
#[derive(Debug, Clone)]
pub struct Topology {
    retry_delays: Vec<Duration>,
}

impl Topology {
    /// The exchanges and queues for commands, events and dead letters, and a retry queue for each delay.
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Self {
        let mut retry_delays: Vec<Duration> = delays.into_iter().collect();
        retry_delays.sort_unstable();
        retry_delays.dedup();
        Self { retry_delays }
    }

    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        declare_exchange(channel, COMMANDS_EXCHANGE, ExchangeKind::Direct).await?;
        declare_exchange(channel, EVENTS_EXCHANGE, ExchangeKind::Topic).await?;
        declare_exchange(channel, DEAD_LETTER_EXCHANGE, ExchangeKind::Fanout).await?;
        for (name, arguments) in self.queues() {
            declare_queue(channel, &name, &arguments).await?;
        }
        bind_queue(channel, DEAD_LETTER_QUEUE, DEAD_LETTER_EXCHANGE, "").await?;
        bind_queue(channel, DELIVERY_LIMIT_QUEUE, DEAD_LETTER_EXCHANGE, "").await?;
        bind_queue(channel, GENERATE_QUEUE, COMMANDS_EXCHANGE, GENERATE_KEY).await?;
        bind_queue(channel, CANCEL_QUEUE, COMMANDS_EXCHANGE, CANCEL_KEY).await?;
        Ok(())
    }

    /// All queues with their arguments.
    pub(super) fn queues(&self) -> Vec<(String, QueueArguments)> {
        // Each inspection of a dead letter counts as a delivery, and so does each failed attempt to handle a message of
        // the delivery-limit queue while the database is unavailable. The broker's small default limit would drop them.
        let unlimited = || vec![("x-delivery-limit", AMQPValue::LongInt(i32::MAX))];
        let mut commands = dead_letter_arguments(DEAD_LETTER_EXCHANGE);
        commands.push(("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT.into())));
        // A request that cannot be recorded while the database is unavailable must not be given up.
        let mut cancellations = dead_letter_arguments(DEAD_LETTER_EXCHANGE);
        cancellations.extend(unlimited());
        let named = [
            (DEAD_LETTER_QUEUE, unlimited()),
            (DELIVERY_LIMIT_QUEUE, unlimited()),
            (GENERATE_QUEUE, commands),
            (CANCEL_QUEUE, cancellations),
        ];
        let named = named.into_iter().map(|(name, arguments)| (name.to_owned(), arguments));
        // One queue for each delay: in a queue with mixed delays, a short one would wait behind a long one.
        let retries = self.retry_delays.iter().map(|delay| {
            let ttl = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            let mut arguments = dead_letter_arguments(COMMANDS_EXCHANGE);
            arguments.push(("x-dead-letter-routing-key", long_string(GENERATE_KEY)));
            arguments.push(("x-message-ttl", AMQPValue::LongLongInt(ttl)));
            (retry_queue_name(*delay), arguments)
        });
        named.chain(retries).collect()
    }
}

type QueueArguments = Vec<(&'static str, AMQPValue)>;

/// Compares a queue with the arguments it should have. Does not create it.
///
/// The broker closes the channel if the queue is missing or has other arguments.
pub(super) async fn compare_queue(
    channel: &Channel,
    name: &str,
    arguments: &QueueArguments,
) -> Result<QueueMatch, BrokerError> {
    if let QueueState::Missing = queue_state(channel, name).await? {
        return Ok(QueueMatch::Missing);
    }
    match try_declare_queue(channel, name, arguments).await {
        Ok(()) => Ok(QueueMatch::AsExpected),
        Err(error) if is_soft_error(&error, &AMQPSoftError::PRECONDITIONFAILED) => {
            Ok(QueueMatch::Differs(error.to_string()))
        }
        Err(error) => Err(BrokerError { operation: "compare a queue", cause: error.to_string() }),
    }
}

/// How an existing queue compares with its declaration in the topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueMatch {
    /// It exists with the expected arguments.
    AsExpected,
    /// It exists with other arguments; holds the broker's error message.
    Differs(String),
    /// It does not exist.
    Missing,
}

/// The state of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueState {
    /// It exists.
    Present {
        /// Number of messages that are ready for delivery.
        messages: u32,
        /// Number of consumers.
        consumers: u32,
    },
    /// It does not exist.
    Missing,
}

/// Inspects a queue. The broker closes the channel if the queue is missing.
pub(super) async fn queue_state(channel: &Channel, name: &str) -> Result<QueueState, BrokerError> {
    let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let declare = channel.queue_declare(name.into(), options, FieldTable::default());
    let inspection = async {
        match declare.await {
            Ok(queue) => Ok(QueueState::Present { messages: queue.message_count(), consumers: queue.consumer_count() }),
            Err(error) if is_soft_error(&error, &AMQPSoftError::NOTFOUND) => Ok(QueueState::Missing),
            Err(error) => Err(error),
        }
    };
    with_timeout("inspect a queue", inspection).await
}

fn is_soft_error(error: &lapin::Error, soft: &AMQPSoftError) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_id() == soft.get_id(),
        _ => false,
    }
}

/// The name of the queue in which commands wait for their next attempt, such as `assets.generate.retry.30s`.
pub(super) fn retry_queue_name(delay: Duration) -> String {
    format!("{GENERATE_QUEUE}.retry.{}", humantime::format_duration(delay).to_string().replace(' ', ""))
}

/// With the strategy `at-least-once` quorum queues lose no message while dead-lettering it; it requires the overflow
/// behaviour `reject-publish`.
fn dead_letter_arguments(exchange: &str) -> Vec<(&'static str, AMQPValue)> {
    vec![
        ("x-dead-letter-exchange", long_string(exchange)),
        ("x-dead-letter-strategy", long_string("at-least-once")),
        ("x-overflow", long_string("reject-publish")),
    ]
}

fn long_string(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn declare_exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    with_timeout("declare an exchange", channel.exchange_declare(name.into(), kind, options, FieldTable::default()))
        .await
}

async fn declare_queue(channel: &Channel, name: &str, arguments: &QueueArguments) -> Result<(), BrokerError> {
    with_timeout("declare a queue", try_declare_queue(channel, name, arguments)).await
}

async fn try_declare_queue(channel: &Channel, name: &str, arguments: &QueueArguments) -> lapin::Result<()> {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), long_string("quorum"));
    for (key, value) in arguments {
        table.insert((*key).into(), value.clone());
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, table).await.map(drop)
}

async fn bind_queue(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), BrokerError> {
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
    with_timeout("bind a queue", bound).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consume_destination_joins_exchange_key_and_queue() {
        assert_eq!(CONSUME_DESTINATION, format!("{COMMANDS_EXCHANGE}:{GENERATE_KEY}:{GENERATE_QUEUE}"));
    }

    #[test]
    fn retry_queue_is_named_after_its_delay() {
        let check = |seconds, name: &str| assert_eq!(retry_queue_name(Duration::from_secs(seconds)), name);
        check(30, "assets.generate.retry.30s");
        check(120, "assets.generate.retry.2m");
        check(90, "assets.generate.retry.1m30s");
    }
}
