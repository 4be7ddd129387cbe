//! The closed sets of failure codes of events and rows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant,)+
        }

        impl $name {
            /// Every code of the set.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The code as events and rows have it.
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

/// A code that is not of the closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown failure code {0:?}")]
pub struct UnknownCode(String);

codes! {
    /// Why an image was not made.
    ImageFailureCode {
        /// The API refuses the prompt or filtered the picture.
        ContentPolicy => "content_policy",
        /// What the API sent is not an image that can be used.
        InvalidImage => "invalid_image",
        /// The account's quota was used up for longer than a request may wait.
        RateLimited => "rate_limited",
        /// The API answers with server errors or cannot be reached.
        ProviderUnavailable => "provider_unavailable",
        /// The API did not answer in time.
        Timeout => "timeout",
        /// The text is not English and could not be translated.
        TranslationUnavailable => "translation_unavailable",
        /// The API refuses the request itself.
        RejectedRequest => "rejected_request",
        /// The file could not be stored.
        Storage => "storage",
        /// The job ended before this image's turn.
        NotAttempted => "not_attempted",
    }
}

impl ImageFailureCode {
    /// Whether the same image may succeed later. Of [`Self::TranslationUnavailable`] the code alone does not tell: it passes where the
    /// translator could not be reached.
    pub fn may_pass(self) -> bool {
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
        /// Too few images could be made.
        SuccessRateTooLow => "success_rate_too_low",
        /// The command cannot be followed.
        InvalidRequest => "invalid_request",
        /// The API does not accept the key.
        Unauthorized => "unauthorized",
        /// The account has no credits left.
        InsufficientCredits => "insufficient_credits",
        /// The engine does not exist or was retired.
        UnknownEngine => "unknown_engine",
        /// The job would cost more than it may.
        BudgetExceeded => "budget_exceeded",
        /// Infrastructure failed at every try.
        AttemptsExhausted => "attempts_exhausted",
    }
}

impl JobFailureCode {
    /// Whether another try of the job may not meet this cause: somebody may mend the key, buy credits, bring the engine back.
    pub fn may_pass(self) -> bool {
        match self {
            Self::Unauthorized | Self::InsufficientCredits | Self::UnknownEngine => true,
            Self::SuccessRateTooLow | Self::InvalidRequest | Self::BudgetExceeded | Self::AttemptsExhausted => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_written_and_read_alike() {
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
    fn the_codes_that_may_pass_are_those_of_the_contract() {
        let passing: Vec<_> = ImageFailureCode::ALL.iter().filter(|code| code.may_pass()).map(|c| c.as_str()).collect();
        assert_eq!(passing, ["rate_limited", "provider_unavailable", "timeout", "storage"]);
    }
}
