//! Dead letters: inspect, replay, discard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::digest;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection};
use serde_json::Value;
use tokio::time::timeout;
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
/// No further dead letter is fetched once this many bytes are held, by the command line.
pub(super) const MAX_HELD_BYTES: usize = 256 * 1024 * 1024;
/// Number of dead letters that are received at once; their size is not known before.
const MAX_BATCH: usize = 32;
/// How long to wait for a dead letter that was on the queue. Then another client has taken it.
const BATCH_TIMEOUT: Duration = Duration::from_secs(2);
/// Approximate memory of a message besides its body, in bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 2_000;
/// Maximum number of times that a release polls the queue until the requeued messages are visible.
const MAX_RELEASE_POLLS: u32 = 400;
/// Time between two polls.
const RELEASE_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Header of a replayed command: why it had been rejected.
const REPLAYED_REASON_HEADER: &str = "x-replayed-reason";
/// Header of a replayed command: the time of the replay.
const REPLAYED_AT_HEADER: &str = "x-replayed-at";

/// Dead letters fetched but not acknowledged, so that no other client receives them.
///
/// Those neither replayed nor discarded return to the queue on [`DeadLetters::release`] or when the connection closes.
pub struct DeadLetters {
    channel: Channel,
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
    delivery: Delivery,
    /// Whether it was replayed or discarded.
    removed: AtomicBool,
}

/// The queue of dead letters. Clones share the connection.
#[derive(Clone)]
pub struct DeadLetterQueue(Arc<Connection>);

impl DeadLetterQueue {
    pub(super) fn new(connection: Arc<Connection>) -> Self {
        Self(connection)
    }

    /// Fetches the oldest dead letters, at most `max_count` and no further ones once `max_bytes` are held.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; none is held.
    pub async fn hold(&self, max_count: usize, max_bytes: usize) -> Result<DeadLetters, BrokerError> {
        let channel = with_timeout("open a channel", self.0.create_channel()).await?;
        let ready = count_ready(&channel).await?;
        let (mut letters, mut bytes) = (Vec::new(), 0);
        while letters.len() < ready.min(max_count) && bytes < max_bytes {
            let batch = fetch_batch(&channel, MAX_BATCH.min(ready.min(max_count) - letters.len())).await?;
            if batch.is_empty() {
                // Another client has taken them.
                return Ok(DeadLetters { channel, letters, has_more: false });
            }
            bytes += batch.iter().map(|delivery| delivery.data.len() + MESSAGE_OVERHEAD_BYTES).sum::<usize>();
            letters.extend(batch.into_iter().map(DeadLetter::new));
        }
        let has_more = letters.len() < ready;
        Ok(DeadLetters { channel, letters, has_more })
    }
}

/// Number of dead letters on the queue that no client holds.
async fn count_ready(channel: &Channel) -> Result<usize, BrokerError> {
    let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let declaring = channel.queue_declare(DEAD_LETTER_QUEUE.into(), options, FieldTable::default());
    Ok(with_timeout("inspect the dead letters", declaring).await?.message_count() as usize)
}

/// Receives the next `count` dead letters of the queue, or fewer if another client takes some. Faster than one by one.
async fn fetch_batch(channel: &Channel, count: usize) -> Result<Vec<Delivery>, BrokerError> {
    let prefetch = u16::try_from(count).unwrap_or(u16::MAX);
    with_timeout("get dead letters", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let options = BasicConsumeOptions::default();
    let consuming = channel.basic_consume(DEAD_LETTER_QUEUE.into(), "".into(), options, FieldTable::default());
    let mut consumer = with_timeout("get dead letters", consuming).await?;
    let mut batch = Vec::new();
    while batch.len() < count {
        match timeout(BATCH_TIMEOUT, consumer.next()).await {
            Ok(Some(Ok(delivery))) => batch.push(delivery),
            Ok(Some(Err(error))) => {
                return Err(BrokerError { operation: "get dead letters", cause: error.to_string() });
            }
            Ok(None) | Err(_) => break,
        }
    }
    // What it has delivered stays held.
    let cancelling = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    with_timeout("get dead letters", cancelling).await?;
    Ok(batch)
}

impl DeadLetters {
    /// Whether the queue may hold more than these, because the limit of their number or size was reached.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Requeues the remaining dead letters and waits until the queue shows them, so that the next client finds them.
    ///
    /// The wait is about 2 s at most. If the requeue fails, they return to the queue when the connection closes.
    pub async fn release(self) {
        let requeue = BasicNackOptions { multiple: true, requeue: true };
        let held = self.letters.iter().filter(|letter| !letter.removed.load(Ordering::Relaxed)).count();
        if held > 0 && self.channel.basic_nack(0, requeue).await.is_ok() {
            for _ in 0..MAX_RELEASE_POLLS {
                match count_ready(&self.channel).await {
                    Ok(ready) if ready < held => tokio::time::sleep(RELEASE_POLL_INTERVAL).await,
                    Ok(_) | Err(_) => break,
                }
            }
        }
        // Closing it would return them too.
        let _ = with_timeout("close a channel", self.channel.close(200, "done".into())).await;
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
    pub async fn replay(
        &self,
        publisher: &Publisher,
        filter: impl Fn(&DeadLetter) -> bool,
    ) -> Result<usize, BrokerError> {
        let mut replayed = 0;
        for letter in self.letters.iter().filter(|letter| filter(letter)) {
            let properties = forwarded_properties(&letter.delivery.properties);
            let mut headers = properties.headers().clone().unwrap_or_default();
            headers = remove_headers(&headers, &[REASON_HEADER, REJECTED_AT_HEADER]);
            headers.insert(REPLAYED_REASON_HEADER.into(), long_string(&letter.reason));
            headers.insert(REPLAYED_AT_HEADER.into(), long_string(&now_rfc3339()));
            publisher
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
    fn new(mut delivery: Delivery) -> Self {
        let body = std::mem::take(&mut delivery.data);
        let properties = &delivery.properties;
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
        Self { id, job_id, reason, rejected_at, body, delivery, removed: AtomicBool::new(false) }
    }

    /// All headers as name and value, formatted as text.
    pub fn headers(&self) -> Vec<(String, String)> {
        let headers = self.delivery.properties.headers().clone().unwrap_or_default();
        headers.inner().iter().map(|(name, value)| (name.to_string(), format_value(value))).collect()
    }

    /// The routing key with which it is replayed.
    fn routing_key(&self) -> &'static str {
        if self.delivery.routing_key.as_str() == CANCEL_KEY { CANCEL_KEY } else { GENERATE_KEY }
    }

    async fn remove(&self) -> Result<(), BrokerError> {
        with_timeout("acknowledge a dead letter", self.delivery.ack(BasicAckOptions::default())).await?;
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
