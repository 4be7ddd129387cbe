//! A received message and its acknowledgement.

use std::time::{Duration, SystemTime};

use domain::trace::TraceContext;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, ShortString};
use lapin::{Acker, BasicProperties};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::headers;
use super::topology::{DELIVERY_LIMIT, GENERATE_QUEUE};
use super::{BrokerError, with_timeout};

/// A received message with the handle that acknowledges it.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body, not parsed.
    pub body: Vec<u8>,
    pub(super) properties: BasicProperties,
    previous_deliveries: u32,
    /// The handle that acknowledges the message.
    pub ack: AckHandle,
}

impl Message {
    pub(super) fn new(delivery: Delivery) -> Self {
        let Delivery { data: body, properties, redelivered, acker, .. } = delivery;
        let previous_deliveries = if redelivered { delivery_count(&properties).unwrap_or(1) } else { 0 };
        Self { body, properties, previous_deliveries, ack: AckHandle(acker) }
    }

    /// Why the broker itself dead-lettered the message. Messages dead-lettered by a worker have no broker headers.
    pub fn broker_death(&self) -> Option<BrokerDeath> {
        broker_death(&self.properties)
    }

    /// Whether the message was delivered before: a worker requeued it, crashed or lost its connection.
    pub fn was_redelivered(&self) -> bool {
        self.previous_deliveries > 0
    }

    /// Whether the broker dead-letters the message if this delivery is not settled.
    pub fn is_last_delivery(&self) -> bool {
        self.previous_deliveries >= DELIVERY_LIMIT
    }

    /// Whether its priority is 5 or more, which RabbitMQ 4 treats as high in a quorum queue.
    pub fn is_urgent(&self) -> bool {
        self.properties.priority().is_some_and(|priority| priority >= 5)
    }

    /// A sentence about the content type or content encoding if it is not supported.
    pub fn unsupported_encoding(&self) -> Option<String> {
        let is_one_of = |value: &str, allowed: &[&str]| allowed.iter().any(|one| value.eq_ignore_ascii_case(one));
        let kind = self.content_type().split(';').next().unwrap_or_default().trim();
        if !is_one_of(kind, &["", "application/json", "text/json"]) && !kind.ends_with("+json") {
            let shown: String = kind.chars().take(60).collect();
            return Some(format!("content_type: {shown:?} is not allowed; application/json"));
        }
        let encoding = self.content_encoding();
        if !is_one_of(encoding.trim(), &["", "identity", "utf-8", "utf8"]) {
            let shown: String = encoding.chars().take(60).collect();
            return Some(format!("content_encoding: {shown:?} is not allowed; none, the body is UTF-8"));
        }
        None
    }

    /// The headers as JSON.
    pub fn headers(&self) -> Map<String, Value> {
        self.properties.headers().as_ref().map(headers::to_json).unwrap_or_default()
    }

    /// The property `content_type`; empty if absent.
    pub fn content_type(&self) -> &str {
        text_of(self.properties.content_type().as_ref()).unwrap_or_default()
    }

    /// The property `content_encoding`; empty if absent.
    pub fn content_encoding(&self) -> &str {
        text_of(self.properties.content_encoding().as_ref()).unwrap_or_default()
    }

    /// The property `reply_to`.
    pub fn reply_to(&self) -> Option<&str> {
        text_of(self.properties.reply_to().as_ref())
    }

    /// The property `correlation_id`.
    pub fn correlation_id(&self) -> Option<&str> {
        text_of(self.properties.correlation_id().as_ref())
    }

    /// The property `priority`.
    pub fn priority(&self) -> Option<u8> {
        *self.properties.priority()
    }

    /// The producer's trace context from the headers, if it is well formed.
    pub fn trace(&self) -> Option<TraceContext> {
        let header = |name| text_header(&self.properties, name);
        TraceContext::parse(header("traceparent").as_deref(), header("tracestate").as_deref())
    }

    /// When the producer published it, from the `timestamp` property.
    pub fn published_at(&self) -> Option<SystemTime> {
        let timestamp = *self.properties.timestamp().as_ref()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(timestamp))
    }

    /// The `message_id` property set by the producer.
    pub fn message_id(&self) -> Option<&str> {
        text_of(self.properties.message_id().as_ref())
    }

    /// The number of deliveries before this one.
    pub fn previous_deliveries(&self) -> u32 {
        self.previous_deliveries
    }
}

fn text_of(property: Option<&ShortString>) -> Option<&str> {
    property.map(ShortString::as_str)
}

/// Why the broker dead-letters a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerDeath {
    /// Its own time to live had passed.
    Expired,
    /// Its delivery limit was exceeded.
    DeliveryLimit,
}

/// A message that waited on a retry queue has expired there: only its time on the command queue counts.
pub(super) fn broker_death(properties: &BasicProperties) -> Option<BrokerDeath> {
    let headers = headers::to_json(properties.headers().as_ref()?);
    let deaths = headers.get(DEATHS_HEADER).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if deaths.iter().any(|death| death["queue"] == GENERATE_QUEUE && death["reason"] == "expired") {
        return Some(BrokerDeath::Expired);
    }
    headers.contains_key(FIRST_DEATH_HEADER).then_some(BrokerDeath::DeliveryLimit)
}

/// When the broker last dead-lettered a message, as RFC 3339 in UTC.
pub(super) fn broker_death_time(properties: &BasicProperties) -> Option<String> {
    let headers = headers::to_json(properties.headers().as_ref()?);
    let deaths = headers.get(DEATHS_HEADER)?.as_array()?;
    let seconds = deaths.iter().filter_map(|death| death["time"].as_i64()).max()?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}

/// Header of a dead letter: why it was rejected.
pub(super) const REASON_HEADER: &str = "x-rejected-reason";
/// Header of a dead letter: when it was rejected.
pub(super) const REJECTED_AT_HEADER: &str = "x-rejected-at";

/// The value of the header [`REASON_HEADER`].
pub(super) fn rejection_reason(properties: &BasicProperties) -> Option<String> {
    text_header(properties, REASON_HEADER)
}

pub(super) fn text_header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

/// Header in which quorum queues count the deliveries before the current one.
const DELIVERY_COUNT_HEADER: &str = "x-delivery-count";
/// Header in which the broker lists from which queues it dead-lettered a message, and why.
const DEATHS_HEADER: &str = "x-death";
/// Header in which the broker says why it dead-lettered a message for the first time.
const FIRST_DEATH_HEADER: &str = "x-first-death-reason";

/// Whether the broker sets this header itself: the delivery count or the dead-letter history.
///
/// A message that is published again must not carry them: from the history the broker may conclude that the message is
/// dead-lettered in a cycle, and drop it.
pub(super) fn is_broker_header(header: &str) -> bool {
    let death_prefixes = ["x-death", "x-first-death-", "x-last-death-"];
    header == DELIVERY_COUNT_HEADER || death_prefixes.iter().any(|name| header.starts_with(name))
}

/// The delivery count of quorum queues. Source: RabbitMQ's guide to quorum queues, "Poison Message Handling".
fn delivery_count(properties: &BasicProperties) -> Option<u32> {
    let count = properties.headers().as_ref()?.inner().get(DELIVERY_COUNT_HEADER)?;
    let count = count.as_long_long_int().or(count.as_long_int().map(i64::from))?;
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

/// The current time as RFC 3339 in UTC, for headers.
pub(super) fn now_rfc3339() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).expect("a UTC time can be formatted as RFC 3339")
}

/// How a message is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Remove it: its terminal event is confirmed, or the message is confirmed on another queue.
    Acknowledge,
    /// Return it to the head of its queue at once. Counts towards the delivery limit before RabbitMQ 4.3.
    Requeue,
    /// As [`Requeue`](Self::Requeue), after a failure that may repeat: always counts towards the delivery limit.
    RequeueAfterFailure,
}

/// Acknowledges or requeues one message.
///
/// Only the first call on any of the clones has an effect. Dropping all of them settles nothing: the broker delivers
/// the message again when the channel closes.
#[derive(Debug, Clone)]
pub struct AckHandle(Acker);

impl AckHandle {
    /// Settles the message. Has no effect if it was settled before or the channel is already closed.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the channel is lost during the call; the broker then delivers the message again.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), BrokerError> {
        let operation = "settle a message";
        let result = match settlement {
            Settlement::Acknowledge => with_timeout(operation, self.0.ack(BasicAckOptions::default())).await,
            Settlement::Requeue => {
                let options = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                with_timeout(operation, self.0.nack(options)).await
            }
            Settlement::RequeueAfterFailure => {
                with_timeout(operation, self.0.reject(BasicRejectOptions { requeue: true })).await
            }
        };
        result.map(drop)
    }
}
