//! What the program exits with, and the failures that lead there.

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
pub(super) enum Exit {
    Well = 0,
    JobFailed = 1,
    /// `EX_USAGE` of sysexits.
    Usage = 64,
    /// `EX_UNAVAILABLE`.
    Unreachable = 69,
    /// `EX_SOFTWARE`.
    Bug = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command of the command line did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The job has no good end.
    #[error("{0}")]
    Job(String),
    /// A setting or an argument cannot be used.
    #[error("{0}")]
    Usage(String),
    /// A service could not be reached.
    #[error("{0}")]
    Unreachable(String),
}

impl Failure {
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self::Unreachable(message.into())
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Job(_) => Exit::JobFailed,
            Self::Usage(_) => Exit::Usage,
            Self::Unreachable(_) => Exit::Unreachable,
        }
    }
}

impl From<SettingError> for Failure {
    fn from(error: SettingError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// Errors of services: the message has all their causes.
macro_rules! unreachable_service {
    ($($error:ty),+) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Unreachable(error_chain(&error))
            }
        })+
    };
}

unreachable_service!(StoreError, StorageError, BrokerError, BootstrapError, JobRunError);

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Setting(error) => error.into(),
            RunError::Bootstrap(error) => error.into(),
            RunError::Probes { .. } => Self::Usage(error.to_string()),
        }
    }
}
