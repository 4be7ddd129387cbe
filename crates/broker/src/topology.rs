//! Exchanges and queues.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ErrorKind, ExchangeKind};

use super::{BrokerError, answered};

pub(super) const COMMANDS: &str = "assets.commands";
/// The routing key of commands.
pub const GENERATE_KEY: &str = "generate";
pub(super) const GENERATE_QUEUE: &str = "assets.generate";
/// What commands are consumed from, by OpenTelemetry's convention for RabbitMQ: exchange, routing key and queue.
pub const CONSUMED: &str = "assets.commands:generate:assets.generate";
pub(super) const EVENTS: &str = "assets.events";
pub(super) const DEAD_LETTER: &str = "assets.dead-letter";
pub(super) const DEAD_QUEUE: &str = "assets.generate.dead";
/// Where workers see what the broker itself gave to the dead letters.
pub(super) const FALLEN_QUEUE: &str = "assets.generate.fallen";
/// After so many deliveries that were not settled the broker itself gives a command to the dead letters: one that ends the process each time it
/// is read. What belongs to a known job is published anew before, so that lost connections do not add up.
pub(super) const DELIVERY_LIMIT: u32 = 2;

/// What is declared at every connection.
#[derive(Debug, Clone)]
pub struct Topology {
    retry_delays: Vec<Duration>,
}

impl Topology {
    /// The exchanges and queues of commands and events, and a retry queue for each delay.
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Self {
        let mut retry_delays: Vec<Duration> = delays.into_iter().collect();
        retry_delays.sort_unstable();
        retry_delays.dedup();
        Self { retry_delays }
    }

    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), BrokerError> {
        exchange(channel, COMMANDS, ExchangeKind::Direct).await?;
        exchange(channel, EVENTS, ExchangeKind::Topic).await?;
        exchange(channel, DEAD_LETTER, ExchangeKind::Fanout).await?;
        for (name, arguments) in self.queues() {
            queue(channel, &name, &arguments).await?;
        }
        bind(channel, DEAD_QUEUE, DEAD_LETTER, "").await?;
        bind(channel, FALLEN_QUEUE, DEAD_LETTER, "").await?;
        bind(channel, GENERATE_QUEUE, COMMANDS, GENERATE_KEY).await?;
        Ok(())
    }

    /// Every queue, with its arguments.
    pub(super) fn queues(&self) -> Vec<(String, Arguments)> {
        // Looking at a dead letter counts as a delivery, and brokers have a small limit of their own, after which it would vanish; so does a fallen
        // command that cannot be dealt with while the database is away.
        let unlimited = || vec![("x-delivery-limit", AMQPValue::LongInt(i32::MAX))];
        let mut commands = dead_lettering_to(DEAD_LETTER);
        commands.push(("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT.into())));
        let named = [(DEAD_QUEUE, unlimited()), (FALLEN_QUEUE, unlimited()), (GENERATE_QUEUE, commands)];
        let named = named.into_iter().map(|(name, arguments)| (name.to_owned(), arguments));
        // One queue a delay: in a queue of mixed delays, a short one waits behind a long one.
        let retries = self.retry_delays.iter().map(|delay| {
            let ttl = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
            let mut arguments = dead_lettering_to(COMMANDS);
            arguments.push(("x-dead-letter-routing-key", text(GENERATE_KEY)));
            arguments.push(("x-message-ttl", AMQPValue::LongLongInt(ttl)));
            (retry_queue(*delay), arguments)
        });
        named.chain(retries).collect()
    }
}

type Arguments = Vec<(&'static str, AMQPValue)>;

/// Whether a queue is there with these arguments. Makes none; the channel is of no use afterwards where it is missing or has others.
pub(super) async fn compared(channel: &Channel, name: &str, arguments: &Arguments) -> Result<QueueMatch, BrokerError> {
    if let QueueState::Missing = queue_state(channel, name).await? {
        return Ok(QueueMatch::Missing);
    }
    match declared(channel, name, arguments).await {
        Ok(()) => Ok(QueueMatch::AsExpected),
        Err(error) if is(&error, &AMQPSoftError::PRECONDITIONFAILED) => Ok(QueueMatch::Differs(error.to_string())),
        Err(error) => Err(BrokerError { doing: "compare a queue", cause: error.to_string() }),
    }
}

/// How a queue compares with what is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueMatch {
    /// It is as it shall be.
    AsExpected,
    /// It has other arguments: the broker's words.
    Differs(String),
    /// It has not been declared.
    Missing,
}

/// What is known of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueState {
    /// It is there.
    There {
        /// Messages that are ready.
        messages: u32,
        /// Consumers it has.
        consumers: u32,
    },
    /// It has not been declared.
    Missing,
}

/// Looks at a queue; where it is missing, the channel is of no use afterwards.
pub(super) async fn queue_state(channel: &Channel, name: &str) -> Result<QueueState, BrokerError> {
    let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(name.into(), options, FieldTable::default());
    let looked = async {
        match declared.await {
            Ok(queue) => Ok(QueueState::There { messages: queue.message_count(), consumers: queue.consumer_count() }),
            Err(error) if is(&error, &AMQPSoftError::NOTFOUND) => Ok(QueueState::Missing),
            Err(error) => Err(error),
        }
    };
    answered("look at a queue", looked).await
}

fn is(error: &lapin::Error, soft: &AMQPSoftError) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_id() == soft.get_id(),
        _ => false,
    }
}

/// The queue where a command waits for its next try: `assets.generate.retry.30s`.
pub(super) fn retry_queue(delay: Duration) -> String {
    format!("{GENERATE_QUEUE}.retry.{}", humantime::format_duration(delay).to_string().replace(' ', ""))
}

/// Quorum queues lose no dead letter on its way with this strategy, which wants this way to be full.
fn dead_lettering_to(exchange: &str) -> Vec<(&'static str, AMQPValue)> {
    vec![
        ("x-dead-letter-exchange", text(exchange)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    answered("declare an exchange", channel.exchange_declare(name.into(), kind, options, FieldTable::default())).await
}

async fn queue(channel: &Channel, name: &str, arguments: &Arguments) -> Result<(), BrokerError> {
    answered("declare a queue", declared(channel, name, arguments)).await
}

async fn declared(channel: &Channel, name: &str, arguments: &Arguments) -> lapin::Result<()> {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text("quorum"));
    for (key, value) in arguments {
        table.insert((*key).into(), value.clone());
    }
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, table).await.map(drop)
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), BrokerError> {
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
    answered("bind a queue", bound).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_metrics_name_what_is_consumed() {
        assert_eq!(CONSUMED, format!("{COMMANDS}:{GENERATE_KEY}:{GENERATE_QUEUE}"));
    }

    #[test]
    fn each_delay_has_a_queue_named_after_it() {
        let check = |seconds, name: &str| assert_eq!(retry_queue(Duration::from_secs(seconds)), name);
        check(30, "assets.generate.retry.30s");
        check(120, "assets.generate.retry.2m");
        check(90, "assets.generate.retry.1m30s");
    }
}
