//! Exit codes, and the errors that lead to them.

use std::process::ExitCode;

use broker::BrokerError;
use store::StoreError;

use crate::bootstrap::BootstrapError;
use crate::error_chain::error_chain;
use crate::job::JobRunError;
use crate::settings::SettingError;
use crate::storage::StorageError;
use crate::worker::RunError;

/// The contract's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitStatus {
    Success = 0,
    JobFailed = 1,
    /// `EX_USAGE` of sysexits.
    Usage = 64,
    /// `EX_UNAVAILABLE`.
    Unreachable = 69,
    /// `EX_SOFTWARE`.
    Bug = 70,
}

impl From<ExitStatus> for ExitCode {
    fn from(exit: ExitStatus) -> Self {
        Self::from(exit as u8)
    }
}

/// Error of a subcommand.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The job failed or did not end.
    #[error("{0}")]
    JobFailed(String),
    /// A setting or an argument is invalid.
    #[error("{0}")]
    Usage(String),
    /// A service could not be reached.
    #[error("{0}")]
    Unreachable(String),
}

impl CliError {
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self::Unreachable(message.into())
    }

    pub(super) fn exit_status(&self) -> ExitStatus {
        match self {
            Self::JobFailed(_) => ExitStatus::JobFailed,
            Self::Usage(_) => ExitStatus::Usage,
            Self::Unreachable(_) => ExitStatus::Unreachable,
        }
    }
}

impl From<SettingError> for CliError {
    fn from(error: SettingError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Converts errors of services; the message contains all causes.
macro_rules! unreachable_service {
    ($($error:ty),+) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::Unreachable(error_chain(&error))
            }
        })+
    };
}

unreachable_service!(StoreError, StorageError, BrokerError, BootstrapError, JobRunError);

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Setting(error) => error.into(),
            RunError::Probes { .. } => Self::Usage(error.to_string()),
        }
    }
}
