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
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl CancelToken {
    /// A token that is cancelled as [`CancelReason::Stopped`] when `stop` is.
    pub(crate) fn child_of(stop: &CancellationToken) -> Self {
        Self { token: stop.child_token(), reason: Arc::default() }
    }

    /// Cancels for this reason; without effect where it is cancelled already. Says whether this reason is the one that counts.
    pub(crate) fn cancel(&self, reason: CancelReason) -> bool {
        let first = !self.token.is_cancelled() && self.reason.set(reason).is_ok();
        self.token.cancel();
        first
    }

    /// Whether it is cancelled, for whatever reason.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The reason; `None` while it is not cancelled.
    pub(crate) fn reason(&self) -> Option<&CancelReason> {
        // Cancelled without a reason of its own, it is the parent that was cancelled.
        self.token.is_cancelled().then(|| self.reason.get_or_init(|| CancelReason::Stopped))
    }

    /// The plain token, for those who wait.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reason_wins() {
        let token = CancelToken::child_of(&CancellationToken::new());
        assert_eq!(token.reason(), None);
        assert!(token.cancel(CancelReason::Preempted));
        assert!(!token.clone().cancel(CancelReason::Hopeless));
        assert_eq!(token.reason(), Some(&CancelReason::Preempted));
    }

    #[test]
    fn cancelled_parent_is_a_stop_that_later_reasons_leave() {
        let stop = CancellationToken::new();
        let token = CancelToken::child_of(&stop);
        stop.cancel();
        assert!(token.is_cancelled());
        assert!(!token.cancel(CancelReason::Infrastructure));
        assert_eq!(token.reason(), Some(&CancelReason::Stopped));
    }

    #[test]
    fn cancelling_an_attempt_does_not_stop_its_parent() {
        let stop = CancellationToken::new();
        CancelToken::child_of(&stop).cancel(CancelReason::Hopeless);
        assert!(!stop.is_cancelled());
    }
}
