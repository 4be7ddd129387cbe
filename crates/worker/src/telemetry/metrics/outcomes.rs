//! What the program tells the metrics and the spans: stages, outcomes and codes, each of a closed set.

use broker::BrokerError;
use store::StoreError;

/// A part of a job's way that is timed and has a span of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
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
    /// In spans and attributes.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Translate => "translate",
            Self::Finish => "process",
            Self::Store => "store",
            Self::Row => "record",
            Self::Decide => "finalize",
            Self::Publish => "publish",
        }
    }
}

/// The outcome of a delivery whose handling failed because of our own infrastructure.
pub(crate) const BROKEN: &str = "error";

/// An error that has a code: what stands in `error.type`.
pub(crate) trait Coded: std::fmt::Display {
    /// Of a closed set.
    fn code(&self) -> &'static str;
}

impl Coded for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Failed { .. } => "database",
            Self::LeaseLost => "lease_lost",
        }
    }
}

impl Coded for BrokerError {
    fn code(&self) -> &'static str {
        "broker"
    }
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
