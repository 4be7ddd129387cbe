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
        let message = &stored.message;
        match publisher.publish_message(message).await? {
            PublishOutcome::Routed => sent.routed += 1,
            PublishOutcome::Unrouted if message.kept_if_unrouted => {
                let (exchange, key) = (&message.exchange, &message.routing_key);
                warn!(exchange, key, "no queue receives the message of a linked task; it is kept with the job");
                sent.kept += 1;
                continue;
            }
            PublishOutcome::Unrouted => {}
        }
        failpoint::reach("between_replies").await;
        done.push(stored);
    }
    if !done.is_empty() {
        store.remove_from_outbox(job_id, &done).await?;
    }
    Ok(sent)
}

/// Publishes messages that are not stored. One that no queue receives is dropped.
///
/// # Errors
///
/// [`BrokerError`]; some of them may have been published.
pub(crate) async fn publish_all(publisher: &Publisher, messages: &[OutgoingMessage]) -> Result<(), BrokerError> {
    for message in messages {
        if publisher.publish_message(message).await? == PublishOutcome::Unrouted && message.kept_if_unrouted {
            let (exchange, key) = (&message.exchange, &message.routing_key);
            warn!(exchange, key, "no queue receives the message of a linked task; it is dropped");
        }
    }
    Ok(())
}
