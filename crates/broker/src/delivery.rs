//! A message as it arrived, and its acknowledgement.

use std::time::{Duration, SystemTime};

use domain::trace::TraceContext;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::AMQPValue;
use lapin::{Acker, BasicProperties};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::topology::DELIVERY_LIMIT;
use super::{BrokerError, answered};

/// A message as it arrived, with the handle that acknowledges it.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body, unread.
    pub body: Vec<u8>,
    pub(super) properties: BasicProperties,
    deliveries: u32,
    /// Acknowledges it.
    pub ack: AckHandle,
}

impl Message {
    pub(super) fn new(delivery: Delivery) -> Self {
        let Delivery { data: body, properties, redelivered, acker, .. } = delivery;
        let deliveries = if redelivered { deliveries(&properties).unwrap_or(1) } else { 0 };
        Self { body, properties, deliveries, ack: AckHandle(acker) }
    }

    /// Whether the broker itself dead-lettered it. What a worker dead-letters carries none of the broker's headers.
    pub fn exceeded_delivery_limit(&self) -> bool {
        let headers = self.properties.headers().as_ref();
        headers.is_some_and(|headers| headers.inner().contains_key(FIRST_DEATH_HEADER))
    }

    /// Whether it was delivered before and not settled: its worker was lost, or has lost the broker.
    pub fn was_redelivered(&self) -> bool {
        self.deliveries > 0
    }

    /// Whether the broker dead-letters it if it is not settled this time.
    pub fn is_last_delivery(&self) -> bool {
        self.deliveries >= DELIVERY_LIMIT
    }

    /// Whether its priority is one of the upper half, 5 to 9: what RabbitMQ 4 takes for high in a quorum queue.
    pub fn is_urgent(&self) -> bool {
        self.properties.priority().is_some_and(|priority| priority >= 5)
    }

    /// What its properties say of the body that makes it unreadable, in a sentence.
    pub fn wrong_encoding(&self) -> Option<String> {
        let is = |value: &str, allowed: &[&str]| allowed.iter().any(|one| value.eq_ignore_ascii_case(one));
        let content_type = self.properties.content_type().as_ref().map(ToString::to_string).unwrap_or_default();
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        if !is(kind, &["", "application/json", "text/json"]) && !kind.ends_with("+json") {
            let shown: String = kind.chars().take(60).collect();
            return Some(format!("content_type: {shown:?} is not allowed; application/json"));
        }
        let encoding = self.properties.content_encoding().as_ref().map(ToString::to_string).unwrap_or_default();
        if !is(encoding.trim(), &["", "identity", "utf-8", "utf8"]) {
            let shown: String = encoding.chars().take(60).collect();
            return Some(format!("content_encoding: {shown:?} is not allowed; none, the body is UTF-8"));
        }
        None
    }

    /// The trace the producer sent along, where it is well formed.
    pub fn trace(&self) -> Option<TraceContext> {
        let header = |name| text_header(&self.properties, name);
        TraceContext::parse(header("traceparent").as_deref(), header("tracestate").as_deref())
    }

    /// When the producer published it, where it says so.
    pub fn published(&self) -> Option<SystemTime> {
        let timestamp = *self.properties.timestamp().as_ref()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(timestamp))
    }

    /// What the producer calls the message.
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(lapin::types::ShortString::as_str)
    }

    /// How often it was delivered before.
    pub fn deliveries(&self) -> u32 {
        self.deliveries
    }
}

/// Why a dead letter lies where it lies.
pub(super) const REASON_HEADER: &str = "x-rejected-reason";
/// Since when it lies there.
pub(super) const REJECTED_AT_HEADER: &str = "x-rejected-at";

/// The reason of a dead letter, where it has one.
pub(super) fn reason(properties: &BasicProperties) -> Option<String> {
    text_header(properties, REASON_HEADER)
}

pub(super) fn text_header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// Where quorum queues count them.
const DELIVERY_COUNT_HEADER: &str = "x-delivery-count";
/// Where the broker says why it dead-lettered a message for the first time.
const FIRST_DEATH_HEADER: &str = "x-first-death-reason";

/// Whether a header is the broker's own, which a message that is published anew must not carry: what it counts, and the queues where it died, from
/// which the broker would conclude that the message goes in circles, and let it go nowhere.
pub(super) fn is_the_brokers(header: &str) -> bool {
    let deaths = ["x-death", "x-first-death-", "x-last-death-"];
    header == DELIVERY_COUNT_HEADER || deaths.iter().any(|name| header.starts_with(name))
}

/// What quorum queues count. Source: RabbitMQ's guide to quorum queues, "Poison Message Handling".
fn deliveries(properties: &BasicProperties) -> Option<u32> {
    let count = properties.headers().as_ref()?.inner().get(DELIVERY_COUNT_HEADER)?;
    let count = count.as_long_long_int().or(count.as_long_int().map(i64::from))?;
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The current time for headers: RFC 3339 in UTC.
pub(super) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).expect("a UTC time has an RFC 3339 form")
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// It is handled: its terminal event is confirmed, or it is safe on another queue.
    Acknowledge,
    /// It returns to the head of its queue at once.
    Requeue,
}

/// Acknowledges one message. Of all clones, only the first call has an effect. Dropping them settles nothing: the broker delivers again when the channel
/// closes.
#[derive(Debug, Clone)]
pub struct AckHandle(Acker);

impl AckHandle {
    /// Tells the broker what became of the message; without effect where the message was settled before, or the channel is gone.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where the channel is lost meanwhile; the broker delivers again.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), BrokerError> {
        let doing = "take a settlement";
        let told = match settlement {
            Settlement::Acknowledge => answered(doing, self.0.ack(BasicAckOptions::default())).await,
            Settlement::Requeue => {
                let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                answered(doing, self.0.nack(options)).await
            }
        };
        told.map(drop)
    }
}
