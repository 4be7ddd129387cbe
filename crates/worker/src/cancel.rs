//! Why the work of one attempt stops: a token whose first reason wins.

use std::sync::{Arc, OnceLock};

use domain::failure::JobFailureCode;
use tokio_util::sync::CancellationToken;

/// Why no further image of an attempt is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CancelReason {
    /// The worker stops, or has lost the broker.
    Stopped,
    /// The time slice of the job is over.
    Preempted,
    /// Every further request would fail with this code, for the reason that the sentence gives.
    Fatal(JobFailureCode, String),
    /// So many images have failed that the success rate cannot be reached.
    Hopeless,
    /// Another worker has claimed the job.
    LeaseLost,
    /// The database or the storage failed.
    Infrastructure,
}

/// Cancels the work of one attempt. Clones share the token and its reason.
#[derive(Debug, Clone)]
pub(crate) struct CancelToken {
    stop: CancellationToken,
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl CancelToken {
    /// A token that is cancelled as [`CancelReason::Stopped`] when `stop` is.
    pub(crate) fn child_of(stop: &CancellationToken) -> Self {
        Self { stop: stop.clone(), token: stop.child_token(), reason: Arc::default() }
    }

    /// Cancels for this reason; without effect where it is cancelled already. Returns whether this call set the reason.
    pub(crate) fn cancel(&self, reason: CancelReason) -> bool {
        let first = !self.token.is_cancelled() && self.reason.set(reason).is_ok();
        self.token.cancel();
        first
    }

    /// Whether it is cancelled, for any reason.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The reason; `None` while it is not cancelled.
    pub(crate) fn reason(&self) -> Option<&CancelReason> {
        // No reason was set, so the parent was cancelled.
        self.token.is_cancelled().then(|| self.reason.get_or_init(|| CancelReason::Stopped))
    }

    /// Whether the worker stops, also where another reason came first.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The underlying token, to wait on.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

#[cfg(test)]
mod tests;
