//! What a caller may do.

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything, by `API_TOKEN`.
    Full,
    /// What changes nothing, by `API_READ_TOKEN`.
    ReadOnly,
    /// Everything, because no token is set: the API listens on loopback.
    Local,
}

impl Role {
    /// The name in the audit.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::Local => "local",
        }
    }
}
