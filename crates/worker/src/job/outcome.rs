//! The outcome of one attempt at a job, or the error that aborted it.

use std::time::Duration;

use domain::failure::JobFailureCode;
use store::{StoreError, TerminalEvent};

use crate::telemetry::metrics::{ErrorCode, OUTCOME_ERROR};
use crate::telemetry::trace;

/// The outcome of one attempt at a job.
#[derive(Debug)]
pub enum JobOutcome {
    /// The job ended in this attempt; its terminal event is stored.
    Ended(TerminalEvent),
    /// The job had ended before; this is its stored terminal event.
    AlreadyEnded(TerminalEvent),
    /// The missing images are to be retried after this delay.
    RetryAfter(Duration),
    /// The worker is stopping or has lost the broker; another attempt will continue the job.
    Interrupted,
    /// The time slice is over; another attempt will continue the job after the jobs that are waiting.
    Preempted,
    /// The account gate is closed; the attempt does not count, and another one will continue the job.
    GateClosed,
    /// Another worker holds the job's lease.
    Leased,
    /// Another worker claimed the job during this attempt, which had no further effect.
    LeaseLost,
    /// The job had ended and was purged: its command has no effect.
    Purged,
    /// The job id belongs to another command.
    Conflict,
}

impl JobOutcome {
    /// The outcome label of metrics and spans, and the failure code of a job that failed in this attempt.
    pub(crate) fn labels(&self) -> (&'static str, &'static str) {
        let label = match self {
            Self::Ended(TerminalEvent {
                error: Some(code @ (JobFailureCode::Cancelled | JobFailureCode::Expired)),
                ..
            }) => {
                return (code.as_str(), code.as_str());
            }
            Self::Ended(TerminalEvent { error: Some(code), .. }) => return ("failed", code.as_str()),
            Self::Ended(_) => "completed",
            Self::AlreadyEnded(_) => "already_ended",
            Self::RetryAfter(_) => "retried",
            Self::Interrupted => "interrupted",
            Self::Preempted => "preempted",
            Self::GateClosed => "gate_closed",
            Self::Leased => "leased",
            Self::LeaseLost => "lease_lost",
            Self::Purged => "purged",
            Self::Conflict => "conflict",
        };
        (label, "")
    }
}

/// Records the outcome of an attempt on the current span.
pub(crate) fn record_outcome(outcome: Result<&JobOutcome, &JobRunError>) {
    trace::set_attribute("job.outcome", outcome.map_or(OUTCOME_ERROR, |outcome| outcome.labels().0));
}

/// A failure of the worker's own infrastructure that aborted an attempt. Images completed before stay completed.
#[derive(Debug, thiserror::Error)]
pub enum JobRunError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be determined whether requests can be paid for.
    #[error(transparent)]
    Budget(Box<dyn std::error::Error + Send + Sync>),
}

impl ErrorCode for JobRunError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Budget(_) => "database",
        }
    }
}
