//! Errors of building the client and of translating a text.

/// The client could not be built: the key is not a valid header value, or the TLS set-up failed.
///
/// The message never contains the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub(crate) String);

/// Why a text was not translated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranslationError {
    /// The API was unreachable, overloaded or too slow, or the text was not requested; a later call may succeed.
    #[error("translation service unavailable: {0}")]
    Unreachable(String),
    /// The API rejected the request, blocked the text, or returned no usable translation.
    #[error("{0}")]
    Failed(String),
}

impl TranslationError {
    /// Whether a later call with the same text may succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Failed(_) => false,
        }
    }
}
