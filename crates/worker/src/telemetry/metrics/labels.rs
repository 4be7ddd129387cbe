//! Label values of metrics and spans: stages, outcomes and error codes, each a closed set.

use broker::BrokerError;
use store::StoreError;

/// A stage of a job, which has its own span and whose duration is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The job is claimed in the database.
    Claim,
    /// Descriptions are translated into English.
    Translate,
    /// An image is decoded, quality-checked, resized, cropped, encoded and verified.
    Process,
    /// The image file is written.
    Store,
    /// The image's database row is completed.
    Record,
    /// Outcome and terminal event are written in one transaction.
    Finalize,
    /// The terminal event is published with a publisher confirm.
    Publish,
}

impl Stage {
    /// The name in spans and attributes.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Translate => "translate",
            Self::Process => "process",
            Self::Store => "store",
            Self::Record => "record",
            Self::Finalize => "finalize",
            Self::Publish => "publish",
        }
    }
}

/// Outcome of a delivery whose handling failed because the database or the broker failed.
pub(crate) const OUTCOME_ERROR: &str = "error";

/// An error with a code for the attribute `error.type`.
pub(crate) trait ErrorCode: std::fmt::Display {
    /// The code, from a closed set.
    fn code(&self) -> &'static str;
}

impl ErrorCode for StoreError {
    fn code(&self) -> &'static str {
        match self {
            Self::Database { .. } => "database",
            Self::LeaseLost => "lease_lost",
        }
    }
}

impl ErrorCode for BrokerError {
    fn code(&self) -> &'static str {
        "broker"
    }
}

/// Why a message was dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeadLetterReason {
    /// It is not a valid command.
    InvalidRequest,
    /// Its job id belongs to another command.
    JobIdConflict,
    /// Its job lost its worker too many times in a row before an image was finished.
    AttemptsExhausted,
    /// The broker gave it up: delivery limit exceeded.
    DeliveryLimit,
    /// The broker gave it up: its time to live passed on the queue.
    Expired,
    /// It is not a valid request to cancel a job.
    InvalidCancel,
}

impl DeadLetterReason {
    pub(super) const ALL: [Self; 6] = [
        Self::InvalidRequest,
        Self::JobIdConflict,
        Self::AttemptsExhausted,
        Self::DeliveryLimit,
        Self::Expired,
        Self::InvalidCancel,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::JobIdConflict => "job_id_conflict",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::DeliveryLimit => "delivery_limit",
            Self::Expired => "expired",
            Self::InvalidCancel => "invalid_cancel",
        }
    }
}
