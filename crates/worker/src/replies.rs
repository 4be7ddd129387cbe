//! Publishes messages for those who are told about a job: linked tasks and results.

use broker::{BrokerError, PublishOutcome, Publisher};
use domain::outgoing::OutgoingMessage;
use store::{Store, StoreError};
use tracing::warn;
use uuid::Uuid;

use crate::failpoint;
use crate::telemetry::metrics::ErrorCode;

/// Messages could not be published, or it could not be recorded which of them were.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl ErrorCode for ReplyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Broker(error) => error.code(),
        }
    }
}

/// Numbers of messages that a queue has received, and of those that are kept because none has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) routed: usize,
    pub(crate) kept: usize,
}

/// Publishes the messages of an ended job in their order and removes them from the outbox. A result that no queue
/// receives is dropped; the message of a linked task is kept.
///
/// # Errors
///
/// [`ReplyError`]; messages that were published may be published again.
pub(crate) async fn publish_outbox(store: &Store, publisher: &Publisher, job_id: Uuid) -> Result<Sent, ReplyError> {
    let stored = store.read_outbox(job_id).await?;
    let (mut sent, mut done) = (Sent::default(), Vec::new());
    for stored in stored {
        let outcome = publisher.publish_message(&stored.message).await?;
        failpoint::reach("between_replies").await;
        if is_kept(outcome, &stored.message) {
            sent.kept += 1;
            continue;
        }
        sent.routed += usize::from(outcome == PublishOutcome::Routed);
        done.push(stored);
    }
    if !done.is_empty() {
        store.remove_from_outbox(job_id, &done).await?;
    }
    Ok(sent)
}

/// Publishes messages that follow a task and are not stored with a job: its job is another one, or there is none. Those
/// of linked tasks that no queue receives are kept in the outbox. Returns their number.
///
/// # Errors
///
/// [`ReplyError`]; some of them may have been published.
pub(crate) async fn publish_directly(
    store: &Store,
    publisher: &Publisher,
    task_id: &str,
    messages: Vec<OutgoingMessage>,
) -> Result<usize, ReplyError> {
    let mut kept = Vec::new();
    for message in messages {
        if is_kept(publisher.publish_message(&message).await?, &message) {
            kept.push(message);
        }
    }
    store.keep_messages(Uuid::new_v5(&Uuid::NAMESPACE_OID, task_id.as_bytes()), &kept).await?;
    Ok(kept.len())
}

fn is_kept(outcome: PublishOutcome, message: &OutgoingMessage) -> bool {
    let is_kept = outcome == PublishOutcome::Unrouted && message.kept_if_unrouted;
    if is_kept {
        let (exchange, key, task) = (&message.exchange, &message.routing_key, message.headers.get("task"));
        let task = task.and_then(serde_json::Value::as_str);
        warn!(exchange, key, task, "no queue receives the message of a linked task; it is kept");
    }
    is_kept
}
