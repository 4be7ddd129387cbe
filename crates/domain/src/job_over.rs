//! Why a job ends before its images are done.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::event::JobError;
use crate::failure::JobFailureCode;

/// Why no further request is paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOver {
    /// The job was cancelled, for this reason.
    Cancelled(Option<String>),
    /// The job's `expires_at` has passed.
    Expired(OffsetDateTime),
}

impl JobOver {
    /// The error of the job's terminal event; `None` if it completes: it has expired, and its success rate is reached.
    pub fn error(&self, reaches_success_rate: bool) -> Option<JobError> {
        match self {
            Self::Expired(_) if reaches_success_rate => None,
            Self::Expired(at) => {
                let at = at.format(&Rfc3339).expect("a UTC time can be formatted as RFC 3339");
                Some(JobError { code: JobFailureCode::Expired, message: format!("the job expired at {at}") })
            }
            Self::Cancelled(reason) => {
                let message = match reason {
                    Some(reason) => format!("the job was cancelled: {reason}"),
                    None => "the job was cancelled".to_owned(),
                };
                Some(JobError { code: JobFailureCode::Cancelled, message })
            }
        }
    }
}
