//! Dead letters: inspect, replay, discard.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::digest;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use uuid::Uuid;

use super::message::{
    BrokerDeath, REASON_HEADER, REJECTED_AT_HEADER, broker_death, broker_death_time, now_rfc3339, rejection_reason,
    text_header,
};
use super::properties::forwarded_properties;
use super::publisher::Publisher;
use super::topology::{CANCEL_KEY, DEAD_LETTER_QUEUE, GENERATE_KEY};
use super::{BrokerError, with_timeout};

/// Hex digits of the digest that form the id of a dead letter.
const ID_DIGITS: usize = 12;
/// No further dead letter is fetched once this many bytes are held.
const MAX_HELD_BYTES: usize = 256 * 1024 * 1024;
/// Approximate memory of a message besides its body, in bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 2_000;
/// Maximum number of times that a release polls the queue until the requeued messages are visible.
const MAX_RELEASE_POLLS: u32 = 40;
/// Time between two polls.
const RELEASE_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Header of a replayed command: why it had been rejected.
const REPLAYED_REASON_HEADER: &str = "x-replayed-reason";
/// Header of a replayed command: the time of the replay.
const REPLAYED_AT_HEADER: &str = "x-replayed-at";

/// Dead letters fetched but not acknowledged, so that no other client receives them.
///
/// Those neither replayed nor discarded return to the queue on [`DeadLetters::release`] or when the connection closes.
pub struct DeadLetters {
    channel: Channel,
    publisher: Publisher,
    letters: Vec<DeadLetter>,
    has_more: bool,
}

/// A dead-lettered message.
pub struct DeadLetter {
    /// The first 12 hex digits of the SHA-256 of reason, time of rejection and body.
    pub id: String,
    /// The body's `job_id`, or the id of a Celery task, if it can be parsed.
    pub job_id: Option<Uuid>,
    /// Why it was dead-lettered; for the broker's own dead letters, which have no reason header, `expired` or
    /// `delivery_limit`.
    pub reason: String,
    /// When it was rejected, or dead-lettered by the broker: RFC 3339 in UTC.
    pub rejected_at: Option<String>,
    /// The body as received.
    pub body: Vec<u8>,
    message: BasicGetMessage,
    /// Whether it was replayed or discarded.
    removed: AtomicBool,
}

impl DeadLetters {
    /// Fetches dead letters, the oldest first, until the queue is empty or [`MAX_HELD_BYTES`] are held.
    pub(super) async fn hold(channel: Channel, publisher: Publisher) -> Result<Self, BrokerError> {
        let mut letters = Vec::new();
        let mut bytes = 0;
        while bytes < MAX_HELD_BYTES {
            let request = channel.basic_get(DEAD_LETTER_QUEUE.into(), BasicGetOptions::default());
            let Some(message) = with_timeout("get a dead letter", request).await? else {
                return Ok(Self { channel, publisher, letters, has_more: false });
            };
            bytes += message.delivery.data.len() + MESSAGE_OVERHEAD_BYTES;
            letters.push(DeadLetter::new(message));
        }
        Ok(Self { channel, publisher, letters, has_more: true })
    }

    /// Whether the queue may hold more than these, because the limit of 256 MiB was reached.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Requeues the remaining dead letters and waits until the queue shows them, so that the next client finds them.
    ///
    /// The wait is about 2 s at most. If the requeue fails, they return to the queue when the connection closes.
    pub async fn release(self) {
        let requeue = BasicNackOptions { multiple: true, requeue: true };
        let held = self.letters.iter().filter(|letter| !letter.removed.load(Ordering::Relaxed)).count();
        if held == 0 || self.channel.basic_nack(0, requeue).await.is_err() {
            return;
        }
        for _ in 0..MAX_RELEASE_POLLS {
            let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
            match self.channel.queue_declare(DEAD_LETTER_QUEUE.into(), options, FieldTable::default()).await {
                Ok(queue) if (queue.message_count() as usize) < held => tokio::time::sleep(RELEASE_POLL_INTERVAL).await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// The dead letters, in the order in which they were fetched.
    pub fn letters(&self) -> &[DeadLetter] {
        &self.letters
    }

    /// Publishes the dead letters that match `filter` again, each with its own routing key, and returns their number.
    ///
    /// Each is published with a confirm before it is acknowledged on the dead-letter queue. An interruption in between
    /// leaves it on both queues, which is harmless: `job_id` is the idempotency key.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; the dead letters not yet replayed are kept.
    pub async fn replay(&self, filter: impl Fn(&DeadLetter) -> bool) -> Result<usize, BrokerError> {
        let mut replayed = 0;
        for letter in self.letters.iter().filter(|letter| filter(letter)) {
            let properties = forwarded_properties(&letter.message.delivery.properties);
            let mut headers = properties.headers().clone().unwrap_or_default();
            headers = remove_headers(&headers, &[REASON_HEADER, REJECTED_AT_HEADER]);
            headers.insert(REPLAYED_REASON_HEADER.into(), long_string(&letter.reason));
            headers.insert(REPLAYED_AT_HEADER.into(), long_string(&now_rfc3339()));
            self.publisher
                .submit_with_properties(letter.routing_key(), &letter.body, properties.with_headers(headers))
                .await?;
            letter.remove().await?;
            replayed += 1;
        }
        Ok(replayed)
    }

    /// Deletes the dead letters that match `filter` and returns their number.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; the dead letters not yet deleted are kept.
    pub async fn discard(&self, filter: impl Fn(&DeadLetter) -> bool) -> Result<usize, BrokerError> {
        let mut discarded = 0;
        for letter in self.letters.iter().filter(|letter| filter(letter)) {
            letter.remove().await?;
            discarded += 1;
        }
        Ok(discarded)
    }
}

impl DeadLetter {
    fn new(mut message: BasicGetMessage) -> Self {
        let body = std::mem::take(&mut message.delivery.data);
        let properties = &message.delivery.properties;
        // Messages that the broker itself dead-lettered have no such header, only the broker's own.
        let reason = rejection_reason(properties).unwrap_or_else(|| match broker_death(properties) {
            Some(BrokerDeath::Expired) => "expired".to_owned(),
            Some(BrokerDeath::DeliveryLimit) | None => "delivery_limit".to_owned(),
        });
        let rejected_at = text_header(properties, REJECTED_AT_HEADER);
        let digest_input = [reason.as_bytes(), rejected_at.as_deref().unwrap_or_default().as_bytes(), &body].concat();
        let id = digest::sha256(digest_input)[..ID_DIGITS].to_owned();
        let job_id = serde_json::from_slice::<Value>(&body).ok();
        let task_id = || text_header(properties, "task").and_then(|_| text_header(properties, "id"));
        let job_id = job_id.and_then(|body| body["job_id"].as_str().map(str::to_owned)).or_else(task_id);
        let job_id = job_id.and_then(|id| Uuid::try_parse(&id).ok());
        let rejected_at = rejected_at.or_else(|| broker_death_time(properties));
        Self { id, job_id, reason, rejected_at, body, message, removed: AtomicBool::new(false) }
    }

    /// All headers as name and value, formatted as text.
    pub fn headers(&self) -> Vec<(String, String)> {
        let headers = self.message.delivery.properties.headers().clone().unwrap_or_default();
        headers.inner().iter().map(|(name, value)| (name.to_string(), format_value(value))).collect()
    }

    /// The routing key with which it is replayed.
    fn routing_key(&self) -> &'static str {
        if self.message.delivery.routing_key.as_str() == CANCEL_KEY { CANCEL_KEY } else { GENERATE_KEY }
    }

    async fn remove(&self) -> Result<(), BrokerError> {
        with_timeout("acknowledge a dead letter", self.message.delivery.ack(BasicAckOptions::default())).await?;
        self.removed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn format_value(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        other => format!("{other:?}"),
    }
}

fn remove_headers(headers: &FieldTable, names: &[&str]) -> FieldTable {
    let kept = headers.inner().iter().filter(|(name, _)| !names.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect::<std::collections::BTreeMap<_, _>>().into()
}

fn long_string(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
