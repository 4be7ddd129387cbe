//! The end of a try: the job is put down for later, or ended.

use std::time::Duration;

use domain::event::{Event, JobError, Totals};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::ImageState;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::board::Board;
use super::{JobRunError, Run, Verdict};
use crate::store::{Ending, TerminalEvent};
use crate::telemetry::metrics::{JobOutcome, Stage};
use crate::telemetry::trace;

impl Run<'_> {
    /// Ends the job: outcome and terminal event are stored together.
    pub(super) async fn end(
        &self,
        board: &Board,
        created_at: OffsetDateTime,
        error: Option<JobError>,
    ) -> Result<Verdict, JobRunError> {
        let not_attempted = board.mark_not_attempted();
        let context = self.context();
        let cost_usd = self.workshop.prices.of(board.charged());
        let duration_ms = u64::try_from((context.time - created_at).whole_milliseconds()).unwrap_or_default();
        let images = board.images();
        let states: Vec<ImageState> = images.iter().map(|(_, state)| state.clone()).collect();
        let event = Event::terminal(&context, &states, Totals { cost_usd, duration_ms }, error.as_ref());
        let ending = Ending { lease: self.lease, images: &images, error: error.as_ref(), cost_usd, event: &event };
        self.done.cancel();
        let finishing = self.workshop.patiently(|| self.workshop.store.finish(&ending));
        self.workshop.metrics.stage(Stage::Decide, finishing).await?;
        let tally = board.tally();
        let (took, completed) = (Duration::from_millis(duration_ms), error.is_none());
        self.workshop.metrics.job_ended(tally.completed, tally.total, took, completed);
        for _ in 0..not_attempted {
            self.workshop.metrics.image_failed(ImageFailureCode::NotAttempted);
        }
        trace::note("job.succeeded", i64::from(tally.completed));
        trace::note("job.failed", i64::from(tally.failed()));
        trace::note("job.from_cache", i64::from(tally.from_cache));
        trace::note("job.cost_usd", cost_usd);
        if let Some(error) = &error {
            trace::failed(error.code.as_str(), &error.message);
        }
        for (index, failure) in board.unannounced_failures() {
            self.announce(&Event::progress(&self.context(), index, Some(failure), &tally)).await;
        }
        match &error {
            None => info!(
                succeeded = tally.completed,
                failed = tally.failed(),
                cost_usd,
                duration_ms,
                "the job is completed"
            ),
            Some(error) => warn!(
                code = error.code.as_str(),
                reason = error.message,
                succeeded = tally.completed,
                failed = tally.failed(),
                cost_usd,
                duration_ms,
                "the job has failed"
            ),
        }
        let code = error.map(|error| error.code);
        let exhausted = code == Some(JobFailureCode::AttemptsExhausted);
        let outcome = code.map_or(JobOutcome::Completed, JobOutcome::Failed);
        Ok(Verdict::Ended(TerminalEvent { event, published: false, exhausted }, outcome))
    }

    /// Puts the job down for whoever comes next; `attempt` counts this try.
    pub(super) async fn put_down(&self, attempt: bool) -> Result<(), JobRunError> {
        self.done.cancel();
        Ok(self.workshop.patiently(|| self.workshop.store.put_down(self.lease, attempt)).await?)
    }

    pub(super) fn why(&self, code: JobFailureCode, board: &Board) -> String {
        let tally = board.tally();
        let rate = format!(
            "{} of {} images were made; min_success_rate is {}",
            tally.completed,
            tally.total,
            self.min_success_rate()
        );
        match board.fatal_cause() {
            Some((fatal, message)) if fatal == code => format!("{message}; {rate}"),
            _ => rate,
        }
    }
}
