//! Errors of making one image, and their consequences for the attempt.

use domain::failure::{ImageFailureCode, JobFailureCode};
use stability_client::{BudgetError, Error};
use store::StoreError;

use crate::cancel::CancelReason;
use crate::error_chain::error_chain;
use crate::storage::StorageError;
use crate::telemetry::metrics::ErrorCode;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// This image failed.
    #[error("{1}")]
    Failed(ImageFailureCode, String),
    /// Every image of the job would fail for this reason; this image has no result.
    #[error("{1}")]
    Fatal(JobFailureCode, String),
    /// The API refused the account, because of the key or the credits; this image has no result.
    #[error("{1}")]
    Refused(JobFailureCode, String),
    /// The attempt was cancelled before the image had a result.
    #[error("cancelled")]
    Cancelled,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be determined whether a request can be paid for.
    #[error(transparent)]
    Budget(Box<dyn std::error::Error + Send + Sync>),
}

impl ErrorCode for ImageError {
    fn code(&self) -> &'static str {
        match self {
            Self::Failed(code, _) => code.as_str(),
            Self::Fatal(code, _) | Self::Refused(code, _) => code.as_str(),
            Self::Cancelled => "cancelled",
            Self::Store(error) => error.code(),
            Self::Budget(_) => "database",
        }
    }
}

impl From<StorageError> for ImageError {
    fn from(error: StorageError) -> Self {
        Self::Failed(ImageFailureCode::Storage, error_chain(&error))
    }
}

impl From<Error> for ImageError {
    /// Maps each error of the API client to its consequence.
    fn from(error: Error) -> Self {
        let failed = |code| Self::Failed(code, error.to_string());
        let fatal = |code| Self::Fatal(code, error.to_string());
        let refused = |code| Self::Refused(code, error.to_string());
        match error {
            Error::ContentPolicy(_) | Error::Filtered => failed(ImageFailureCode::ContentPolicy),
            Error::RateLimited { .. } | Error::Quota(_) => failed(ImageFailureCode::RateLimited),
            Error::Damaged { .. } | Error::TooLong => failed(ImageFailureCode::InvalidImage),
            Error::Unusable(unusable) => Self::Failed(ImageFailureCode::InvalidImage, unusable.reason),
            Error::Timeout => failed(ImageFailureCode::Timeout),
            Error::InvalidRequest(_) | Error::Rejected(_) => failed(ImageFailureCode::RejectedRequest),
            Error::Unauthorized(_) => refused(JobFailureCode::Unauthorized),
            Error::InsufficientCredits(_) => refused(JobFailureCode::InsufficientCredits),
            Error::UnknownEngine(_) => fatal(JobFailureCode::UnknownEngine),
            Error::Budget(BudgetError::Exceeded(_)) => fatal(JobFailureCode::BudgetExceeded),
            Error::Budget(BudgetError::Unavailable(source)) => Self::Budget(source),
            Error::Stopped => Self::Cancelled,
            Error::Connect(_)
            | Error::Interrupted(_)
            | Error::Server { .. }
            | Error::Unfinished
            | Error::Undecodable(_) => failed(ImageFailureCode::ProviderUnavailable),
            // Errors that a later version of the client adds.
            error if error.class().retryable => Self::Failed(ImageFailureCode::ProviderUnavailable, error.to_string()),
            error => Self::Failed(ImageFailureCode::RejectedRequest, error.to_string()),
        }
    }
}

impl ImageError {
    /// The reason to cancel the attempt if no other image could be made either; otherwise `None`.
    pub(super) fn cancel_reason(&self) -> Option<CancelReason> {
        match self {
            Self::Fatal(code, message) => Some(CancelReason::Fatal(*code, message.clone())),
            Self::Refused(..) => Some(CancelReason::GateClosed),
            Self::Failed(ImageFailureCode::Storage, _) | Self::Store(StoreError::Database { .. }) | Self::Budget(_) => {
                Some(CancelReason::Infrastructure)
            }
            Self::Store(StoreError::LeaseLost) => Some(CancelReason::LeaseLost),
            Self::Failed(..) | Self::Cancelled => None,
        }
    }

    /// Whether the API caused the failure, so that a cached image may be used.
    ///
    /// A rejected prompt has no cache fallback: a prompt that the API rejects now must not be served from the cache.
    pub(super) fn allows_cache_fallback(&self) -> bool {
        match self {
            Self::Fatal(..) => true,
            Self::Failed(code, _) => match code {
                ImageFailureCode::InvalidImage
                | ImageFailureCode::RateLimited
                | ImageFailureCode::ProviderUnavailable
                | ImageFailureCode::Timeout => true,
                ImageFailureCode::ContentPolicy
                | ImageFailureCode::RejectedRequest
                | ImageFailureCode::TranslationUnavailable
                | ImageFailureCode::Storage
                | ImageFailureCode::NotAttempted => false,
            },
            // The images of a refused account wait.
            Self::Refused(..) | Self::Cancelled | Self::Store(_) | Self::Budget(_) => false,
        }
    }
}
