//! What the program tells the metrics and the spans: stages, outcomes and codes, each of a closed set.

use domain::failure::JobFailureCode;

/// A part of a job's way that is timed and has a span of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The database says whose job it is.
    Claim,
    /// Texts become English.
    Translate,
    /// A picture is decoded, looked at, scaled, cropped, encoded and checked.
    Finish,
    /// A file is written.
    Store,
    /// An image's row is completed.
    Row,
    /// Outcome and terminal event are written.
    Decide,
    /// A terminal event is confirmed by the broker.
    Publish,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 7] =
        [Self::Claim, Self::Translate, Self::Finish, Self::Store, Self::Row, Self::Decide, Self::Publish];

    /// In spans and attributes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Translate => "translate",
            Self::Finish => "finish",
            Self::Store => "store",
            Self::Row => "row",
            Self::Decide => "decide",
            Self::Publish => "publish",
        }
    }
}

/// What became of a delivery of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobOutcome {
    /// Its job is completed.
    Completed,
    /// Its job has failed.
    Failed(JobFailureCode),
    /// Its job had ended before.
    Repeated,
    /// What is missing is tried again later.
    Retried,
    /// It has had its slice.
    Yielded,
    /// The worker was told to stop.
    Interrupted,
    /// Somebody else works on the job.
    Held,
    /// Somebody else has claimed the job meanwhile.
    LeaseLost,
    /// Its id belongs to another command.
    Conflict,
    /// Our own infrastructure failed, with which code.
    Broken(&'static str),
    /// A bug.
    Panicked,
}

impl JobOutcome {
    /// In spans and attributes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed(_) => "failed",
            Self::Repeated => "repeated",
            Self::Retried => "retried",
            Self::Yielded => "yielded",
            Self::Interrupted => "interrupted",
            Self::Held => "held",
            Self::LeaseLost => "lease_lost",
            Self::Conflict => "conflict",
            Self::Broken(_) => "broken",
            Self::Panicked => "panicked",
        }
    }
}

/// An error that has a code: what stands in `error.type`.
pub(crate) trait Coded: std::fmt::Display {
    /// Of a closed set.
    fn code(&self) -> &'static str;
}

/// Why a message went to the dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadLetterReason {
    /// It is no command.
    InvalidRequest,
    /// Its id belongs to another command.
    Conflict,
    /// Infrastructure failed at every try.
    AttemptsExhausted,
    /// It was delivered too often.
    DeliveryLimit,
}

impl DeadLetterReason {
    pub(super) const ALL: [Self; 4] =
        [Self::InvalidRequest, Self::Conflict, Self::AttemptsExhausted, Self::DeliveryLimit];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Conflict => "job_id_conflict",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}
