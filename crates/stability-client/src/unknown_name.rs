//! The error of parsing a name.

/// An engine or option name that this client does not support; the error text lists the supported names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {name:?}; expected one of {allowed}")]
pub struct UnknownName {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) allowed: String,
}
