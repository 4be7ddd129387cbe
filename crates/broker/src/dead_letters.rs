//! The dead letters: looked at, put back on their way, or thrown away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::digest;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use uuid::Uuid;

use super::delivery::{REASON_HEADER, REJECTED_AT_HEADER, now, reason, text_header};
use super::publisher::{Publisher, carried};
use super::topology::DEAD_QUEUE;
use super::{BrokerError, answered};

/// How many hex digits of its digest name a dead letter.
const ID_DIGITS: usize = 12;
/// The most that is held at once, in bytes.
const MAX_HELD_BYTES: usize = 256 * 1024 * 1024;
/// What a message takes besides its body, roughly.
const MESSAGE_BYTES: usize = 2_000;
/// How often, and how often in a second, it is looked whether letters that were let go are there again.
const LOOKS: u32 = 40;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Headers of a replay: why and when it had been rejected is kept under these names.
const REPLAYED_REASON_HEADER: &str = "x-replayed-reason";
const REPLAYED_AT_HEADER: &str = "x-replayed-at";

/// Dead letters that are held from everybody else until this is dropped; what was neither replayed nor discarded is on its queue again then.
pub struct DeadLetters {
    channel: Channel,
    publisher: Publisher,
    letters: Vec<DeadLetter>,
    more: bool,
}

/// A message that nobody could deal with.
pub struct DeadLetter {
    /// What it is called: the beginning of a digest over reason, time and body.
    pub id: String,
    /// The job it speaks of, where that can be read.
    pub job_id: Option<Uuid>,
    /// Why it is here.
    pub reason: String,
    /// Since when, as it was noted: RFC 3339 in UTC.
    pub rejected_at: Option<String>,
    /// As it came.
    pub body: Vec<u8>,
    message: BasicGetMessage,
    /// Replayed or discarded.
    gone: AtomicBool,
}

impl DeadLetters {
    /// Takes hold of what lies there, the oldest first, as much as memory is meant for.
    pub(super) async fn hold(channel: Channel, publisher: Publisher) -> Result<Self, BrokerError> {
        let mut letters = Vec::new();
        let mut bytes = 0;
        while bytes < MAX_HELD_BYTES {
            let got = channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default());
            let Some(message) = answered("give a dead letter", got).await? else {
                return Ok(Self { channel, publisher, letters, more: false });
            };
            bytes += message.delivery.data.len() + MESSAGE_BYTES;
            letters.push(DeadLetter::new(message));
        }
        Ok(Self { channel, publisher, letters, more: true })
    }

    /// Whether more lie there than are held at once.
    pub fn more(&self) -> bool {
        self.more
    }

    /// Lets go of what is left, and waits until others can see it, so that the next look finds it. Where that fails, the end of the connection lets
    /// go of it.
    pub async fn release(self) {
        let requeue = BasicNackOptions { multiple: true, requeue: true };
        let held = self.letters.iter().filter(|letter| !letter.gone.load(Ordering::Relaxed)).count();
        if held == 0 || self.channel.basic_nack(0, requeue).await.is_err() {
            return;
        }
        for _ in 0..LOOKS {
            let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
            match self.channel.queue_declare(DEAD_QUEUE.into(), options, FieldTable::default()).await {
                Ok(queue) if (queue.message_count() as usize) < held => tokio::time::sleep(BETWEEN_LOOKS).await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Those that are held.
    pub fn letters(&self) -> &[DeadLetter] {
        &self.letters
    }

    /// Puts the letters that are chosen back on the queue of commands, and counts them. Each is there, confirmed, before it leaves here; one that is
    /// interrupted in between is in both places, which its job's id makes harmless.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; those not counted are still here.
    pub async fn replay(&self, chosen: impl Fn(&DeadLetter) -> bool) -> Result<usize, BrokerError> {
        let mut replayed = 0;
        for letter in self.letters.iter().filter(|letter| chosen(letter)) {
            let properties = carried(&letter.message.delivery.properties);
            let mut headers = properties.headers().clone().unwrap_or_default();
            headers = without(&headers, &[REASON_HEADER, REJECTED_AT_HEADER]);
            headers.insert(REPLAYED_REASON_HEADER.into(), text(&letter.reason));
            headers.insert(REPLAYED_AT_HEADER.into(), text(&now()));
            self.publisher.submit_with(&letter.body, properties.with_headers(headers)).await?;
            letter.remove().await?;
            replayed += 1;
        }
        Ok(replayed)
    }

    /// Throws the letters that are chosen away, and counts them.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; those not counted are still here.
    pub async fn discard(&self, chosen: impl Fn(&DeadLetter) -> bool) -> Result<usize, BrokerError> {
        let mut discarded = 0;
        for letter in self.letters.iter().filter(|letter| chosen(letter)) {
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
        // The broker's own dead letters say it in a header of its own.
        let reason = reason(properties).unwrap_or_else(|| "delivery_limit".to_owned());
        let rejected_at = text_header(properties, REJECTED_AT_HEADER);
        let said = [reason.as_bytes(), rejected_at.as_deref().unwrap_or_default().as_bytes(), &body].concat();
        let id = digest::sha256(said)[..ID_DIGITS].to_owned();
        let job_id = serde_json::from_slice::<Value>(&body).ok();
        let job_id = job_id.and_then(|body| Uuid::try_parse(body["job_id"].as_str()?).ok());
        Self { id, job_id, reason, rejected_at, body, message, gone: AtomicBool::new(false) }
    }

    /// Every header, as text.
    pub fn headers(&self) -> Vec<(String, String)> {
        let headers = self.message.delivery.properties.headers().clone().unwrap_or_default();
        headers.inner().iter().map(|(name, value)| (name.to_string(), shown(value))).collect()
    }

    async fn remove(&self) -> Result<(), BrokerError> {
        answered("let a dead letter go", self.message.delivery.ack(BasicAckOptions::default())).await?;
        self.gone.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn shown(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        other => format!("{other:?}"),
    }
}

fn without(headers: &FieldTable, names: &[&str]) -> FieldTable {
    let kept = headers.inner().iter().filter(|(name, _)| !names.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect::<std::collections::BTreeMap<_, _>>().into()
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
