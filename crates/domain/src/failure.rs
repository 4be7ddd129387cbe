//! The closed sets of failure codes used in events and rows.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// All codes of the set.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The code as written in events and rows.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownCode;

            fn from_str(text: &str) -> Result<Self, UnknownCode> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(UnknownCode(other.to_owned())),
                }
            }
        }
    };
}

/// A failure code that is not in the closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown failure code {0:?}")]
pub struct UnknownCode(String);

codes! {
    /// Why an image failed.
    ImageFailureCode {
        /// The API rejected the prompt or filtered the image.
        ContentPolicy => "content_policy",
        /// The API returned an image that is unusable.
        InvalidImage => "invalid_image",
        /// The account's quota was exhausted for longer than a request may wait.
        RateLimited => "rate_limited",
        /// The API returned server errors or could not be reached.
        ProviderUnavailable => "provider_unavailable",
        /// The API did not respond in time.
        Timeout => "timeout",
        /// The description is not in English and could not be translated.
        TranslationUnavailable => "translation_unavailable",
        /// The API rejected the request itself.
        RejectedRequest => "rejected_request",
        /// The file could not be stored.
        Storage => "storage",
        /// The job ended before this image was attempted.
        NotAttempted => "not_attempted",
    }
}

impl ImageFailureCode {
    /// Whether the image may succeed if it is retried later.
    ///
    /// [`Self::TranslationUnavailable`] is retryable only if the translator could not be reached, which the code alone
    /// does not tell; this function returns `false` for it.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::RateLimited | Self::ProviderUnavailable | Self::Timeout | Self::Storage => true,
            Self::ContentPolicy
            | Self::InvalidImage
            | Self::TranslationUnavailable
            | Self::RejectedRequest
            | Self::NotAttempted => false,
        }
    }
}

codes! {
    /// Why a job failed.
    JobFailureCode {
        /// The share of completed images is below the required success rate.
        SuccessRateTooLow => "success_rate_too_low",
        /// The command is invalid.
        InvalidRequest => "invalid_request",
        /// The API rejected the API key.
        Unauthorized => "unauthorized",
        /// The account has no credits left.
        InsufficientCredits => "insufficient_credits",
        /// The engine does not exist or was retired.
        UnknownEngine => "unknown_engine",
        /// The job would exceed its cost limit.
        BudgetExceeded => "budget_exceeded",
        /// Files could not be stored in the last attempt, or the worker was lost repeatedly.
        AttemptsExhausted => "attempts_exhausted",
        /// It was cancelled.
        Cancelled => "cancelled",
        /// Its `expires_at` passed before enough images were completed.
        Expired => "expired",
    }
}

impl JobFailureCode {
    /// Whether another attempt at the job may succeed: the key, the credits or the engine may be restored meanwhile.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Unauthorized | Self::InsufficientCredits | Self::UnknownEngine => true,
            Self::SuccessRateTooLow
            | Self::InvalidRequest
            | Self::BudgetExceeded
            | Self::AttemptsExhausted
            | Self::Cancelled
            | Self::Expired => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips() {
        for code in ImageFailureCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
            assert_eq!(serde_json::to_value(code).ok(), Some(serde_json::Value::from(code.as_str())));
        }
        for code in JobFailureCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
            assert_eq!(serde_json::to_value(code).ok(), Some(serde_json::Value::from(code.as_str())));
        }
        assert_eq!(
            "oops".parse::<JobFailureCode>().map_err(|e| e.to_string()),
            Err("unknown failure code \"oops\"".into())
        );
    }

    #[test]
    fn retryable_codes_match_the_contract() {
        let retryable: Vec<_> =
            ImageFailureCode::ALL.iter().filter(|code| code.is_retryable()).map(|c| c.as_str()).collect();
        assert_eq!(retryable, ["rate_limited", "provider_unavailable", "timeout", "storage"]);
    }
}
