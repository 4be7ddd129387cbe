//! Where a job's events go while it runs.

use async_trait::async_trait;
use broker::{Publisher, Routed};
use domain::event::Event;

use crate::telemetry::metrics::Coded;

/// An event was not published.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish: {0}")]
pub struct PublishError(pub String);

impl Coded for PublishError {
    fn code(&self) -> &'static str {
        "broker"
    }
}

/// Takes events: the broker for `run`, the terminal for `generate`.
#[async_trait]
pub trait EventSink: Send + Sync {
    /// Publishes an event; when this returns, it is safe with whoever takes it.
    ///
    /// # Errors
    ///
    /// [`PublishError`] where it is not known to be safe.
    async fn publish(&self, event: &Event) -> Result<Routed, PublishError>;
}

#[async_trait]
impl EventSink for Publisher {
    async fn publish(&self, event: &Event) -> Result<Routed, PublishError> {
        self.publish_event(event).await.map_err(|error| PublishError(error.to_string()))
    }
}
