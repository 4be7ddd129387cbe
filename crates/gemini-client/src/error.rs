//! Why there is no client, or no translation.

/// The client could not be made: the key is not a valid header value, or the TLS set-up failed. The key is not repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(pub(crate) String);

/// Why a text has no English.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untranslated {
    /// The translator could not be reached, or is too busy: later it may work.
    #[error("the translator cannot be reached: {0}")]
    Unreachable(String),
    /// It was reached and gave no translation.
    #[error("{0}")]
    Refused(String),
}

impl Untranslated {
    /// Whether the same text may be translated later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(_) => false,
        }
    }
}
