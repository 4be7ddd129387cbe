//! Destination of a job's events while the job runs.

use async_trait::async_trait;
use broker::{PublishOutcome, Publisher};
use domain::event::Event;
use domain::outgoing::OutgoingMessage;

use crate::telemetry::metrics::ErrorCode;

/// An event could not be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish event: {0}")]
pub struct PublishError(pub String);

impl ErrorCode for PublishError {
    fn code(&self) -> &'static str {
        "broker"
    }
}

/// Receives a job's events: the broker in `run`, the terminal in `generate`.
#[async_trait]
pub trait EventSink: Send + Sync {
    /// Publishes an event and waits until the receiver has confirmed it.
    ///
    /// # Errors
    ///
    /// [`PublishError`] if the event was not confirmed; it may have been received nevertheless.
    async fn publish(&self, event: &Event) -> Result<PublishOutcome, PublishError>;

    /// Sends a message about the state of the job to one receiver, which may miss it.
    ///
    /// # Errors
    ///
    /// [`PublishError`] if it was not confirmed.
    async fn send(&self, message: &OutgoingMessage) -> Result<(), PublishError>;
}

#[async_trait]
impl EventSink for Publisher {
    async fn publish(&self, event: &Event) -> Result<PublishOutcome, PublishError> {
        self.publish_event(event).await.map_err(|error| PublishError(error.to_string()))
    }

    async fn send(&self, message: &OutgoingMessage) -> Result<(), PublishError> {
        self.publish_transient(message).await.map_err(|error| PublishError(error.to_string()))
    }
}
