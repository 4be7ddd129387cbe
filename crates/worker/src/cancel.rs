//! Cancellation of one attempt: a token whose first reason wins.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use domain::failure::JobFailureCode;
use domain::job_over::JobOver;
use store::Probe;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::gate::AccountGate;

/// Why an attempt starts no further image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CancelReason {
    /// The worker is stopping, or has lost the broker.
    Stopped,
    /// The job's time slice is over.
    Preempted,
    /// The account gate is closed: nothing may be paid for.
    GateClosed,
    /// The account gate has opened for all jobs; the worker that ran the admitted job can take others again.
    GateOpened,
    /// The API refused a key that has been replaced; the job continues with the new one.
    KeyReplaced,
    /// The next request would exceed the daily budget.
    DailyBudget,
    /// Every further request would fail with this code; the text is the reason.
    Fatal(JobFailureCode, String),
    /// Too many images have failed: the success rate can no longer be reached.
    SuccessRateUnreachable,
    /// Another worker has claimed the job.
    LeaseLost,
    /// The database or the storage failed.
    Infrastructure,
    /// The job is cancelled or has expired: nothing may be paid for.
    JobOver(JobOver),
}

/// Cancels the work of one attempt. Clones share the token and its reason.
#[derive(Debug, Clone)]
pub(crate) struct CancelToken {
    stop: CancellationToken,
    token: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
}

impl CancelToken {
    /// Creates a token that is cancelled as [`CancelReason::Stopped`] when `stop` is.
    pub(crate) fn child_of(stop: &CancellationToken) -> Self {
        Self { stop: stop.clone(), token: stop.child_token(), reason: Arc::default() }
    }

    /// Cancels for this reason, unless already cancelled. Returns whether this call set the reason.
    pub(crate) fn cancel(&self, reason: CancelReason) -> bool {
        let first = !self.token.is_cancelled() && self.reason.set(reason).is_ok();
        self.token.cancel();
        first
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The first reason; `None` while not cancelled.
    pub(crate) fn reason(&self) -> Option<&CancelReason> {
        // If no reason was set, the parent token was cancelled.
        self.token.is_cancelled().then(|| self.reason.get_or_init(|| CancelReason::Stopped))
    }

    /// Whether the worker is stopping or has lost the broker, also if another reason came first.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// The underlying token, to wait on.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// Cancels the attempt of the admitted job when the account gate opens; never returns.
///
/// Until its jobs have ended, the worker cannot consume with its full prefetch count. The job itself continues at once:
/// its command returns to the head of the queue.
pub(crate) async fn interrupt_admitted_job(
    gate: &AccountGate,
    probe: Option<Probe>,
    cancel: &CancelToken,
) -> Infallible {
    if probe.is_some() {
        gate.wait_until_open().await;
        if cancel.cancel(CancelReason::GateOpened) {
            info!("account gate opened; returning the admitted job to the queue");
        }
    }
    std::future::pending().await
}

/// Cancels an attempt when the account gate closes for it; never returns.
pub(crate) async fn cancel_when_interrupted(
    gate: &AccountGate,
    probe: Option<Probe>,
    cancel: &CancelToken,
) -> Infallible {
    gate.wait_until_interrupted(probe).await;
    if cancel.cancel(CancelReason::GateClosed) {
        info!("account gate closed; no new image is started");
    }
    std::future::pending().await
}

/// Cancels an attempt when its time slice is over; never returns.
pub(crate) async fn preempt_after(slice: Duration, cancel: &CancelToken) -> Infallible {
    sleep(slice).await;
    if cancel.cancel(CancelReason::Preempted) {
        info!(slice = ?slice, "the job's time slice is over; no new image is started");
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
