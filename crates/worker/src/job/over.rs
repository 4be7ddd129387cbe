//! The end of a job that is cancelled or has expired.

use std::convert::Infallible;
use std::time::Duration;

use domain::command::Command;
use domain::job_over::JobOver;
use store::{Claim, StoreError};
use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::attempt::JobAttempt;
use super::{JobOutcome, JobRunError, JobRunner, RunOptions};
use crate::cancel::{CancelReason, CancelToken};
use crate::error_chain::error_chain;
use crate::event_sink::EventSink;

/// A cancellation is noticed within this time, also by a job that pays for nothing.
const POLL_INTERVAL: Duration = Duration::from_secs(4);

impl JobRunner {
    /// Ends a cancelled or expired job that no worker holds, taking over its lease. Its terminal event is due to be
    /// published. No effect if another worker has claimed it.
    ///
    /// # Errors
    ///
    /// [`JobRunError`] if the worker's own infrastructure failed.
    pub(crate) async fn end_due_job(&self, command: &Command, sink: &dyn EventSink) -> Result<(), JobRunError> {
        let terms = self.claim_options(None);
        let Claim::Acquired(claimed) = self.store().claim(command, None, terms).await? else { return Ok(()) };
        let (lease, created_at) = (claimed.lease, claimed.created_at);
        let Some(over) = claimed.over.clone() else {
            // It was over when it was found, and its row says otherwise now: another worker continues it.
            return Ok(self.store().release(lease, false).await?);
        };
        let cancel = CancelToken::child_of(&CancellationToken::new());
        let mut attempt = self.build_attempt(command, RunOptions::default(), sink, *claimed, None, cancel);
        let outcome = self.end_over(&mut attempt, created_at, over).await;
        if let Err(JobRunError::Store(StoreError::LeaseLost)) = outcome {
            return Ok(());
        }
        outcome?;
        Ok(self.store().set_publish_due(lease.job_id).await?)
    }

    /// Cancels an attempt when its job is cancelled or expires; never returns.
    pub(super) async fn cancel_when_over(&self, job_id: Uuid, cancel: &CancelToken) -> Infallible {
        loop {
            sleep(POLL_INTERVAL).await;
            match self.store().read_job_over(job_id).await {
                Ok(None) => {}
                Ok(Some(over)) => {
                    if cancel.cancel(CancelReason::JobOver(over)) {
                        info!("job cancelled or expired; no new image is started");
                    }
                    std::future::pending::<()>().await;
                }
                // The next payment finds out, or the next read.
                Err(error) => warn!(error = error_chain(&error), "cannot read whether the job is cancelled"),
            }
        }
    }

    /// Ends a job that is cancelled or has expired, with the images that it has.
    pub(super) async fn end_over(
        &self,
        attempt: &mut JobAttempt<'_>,
        created_at: OffsetDateTime,
        over: JobOver,
    ) -> Result<JobOutcome, JobRunError> {
        attempt.adopt_stored_files().await?;
        let reaches = attempt.progress.tally().reaches(attempt.progress.min_success_rate);
        self.end_job(attempt, created_at, over.error(reaches)).await
    }
}
