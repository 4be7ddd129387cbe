//! What became of a job, and why its attempt could not be made.

use std::time::Duration;

use store::{StoreError, TerminalEvent};

use crate::telemetry::metrics::{BROKEN, Coded};
use crate::telemetry::trace;

/// What became of a job in one attempt.
#[derive(Debug)]
pub enum JobOutcome {
    /// It has ended; its terminal event is stored.
    Ended(TerminalEvent),
    /// It had ended before; this is its stored terminal event.
    AlreadyEnded(TerminalEvent),
    /// Its missing images are tried again after this delay.
    RetryAfter(Duration),
    /// The worker stops; another attempt continues.
    Interrupted,
    /// Its time slice is over; another attempt continues after the jobs that wait.
    Preempted,
    /// Another worker holds its lease.
    Leased,
    /// Another worker has claimed it during the attempt, which had no further effect.
    LeaseLost,
    /// Its id belongs to another command.
    Conflict,
}

impl JobOutcome {
    /// The label of metrics and spans, and the failure code of a job that failed in this attempt.
    pub(crate) fn labels(&self) -> (&'static str, &'static str) {
        let label = match self {
            Self::Ended(TerminalEvent { error: Some(code), .. }) => return ("failed", code.as_str()),
            Self::Ended(_) => "completed",
            Self::AlreadyEnded(_) => "already_ended",
            Self::RetryAfter(_) => "retried",
            Self::Interrupted => "interrupted",
            Self::Preempted => "preempted",
            Self::Leased => "leased",
            Self::LeaseLost => "lease_lost",
            Self::Conflict => "conflict",
        };
        (label, "")
    }
}

/// Notes on the current span what became of its job.
pub(crate) fn note_outcome(outcome: Result<&JobOutcome, &JobRunError>) {
    trace::note("job.outcome", outcome.map_or(BROKEN, |outcome| outcome.labels().0));
}

/// Why an attempt was given up: our own infrastructure failed. What was finished before stays finished.
#[derive(Debug, thiserror::Error)]
pub enum JobRunError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not known whether requests can be paid for.
    #[error(transparent)]
    Budget(Box<dyn std::error::Error + Send + Sync>),
}

impl Coded for JobRunError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Budget(_) => "database",
        }
    }
}
