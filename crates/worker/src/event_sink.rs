//! Where a job's events go while it runs.

use async_trait::async_trait;
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

/// Whether any queue took an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routed {
    /// At least one did.
    Taken,
    /// None is bound for it.
    Nobody,
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
