//! One job: claim, heartbeat, decide, complete or release. Knows no broker: `run` and `generate` both use it.

mod attempt;
mod events;
mod outcome;
mod plan;
mod progress;

use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use domain::command::Command;
use domain::event::{Event, JobError, Totals};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{Decision, ImageState, Tally, decide};
use domain::style::Style;
use domain::trace::TraceContext;
use stability_client::Client;
use store::{Claim, ClaimTerms, Claimed, Ending, Lease, Store, StoreError, TerminalEvent};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{Span, info, warn};

use crate::budget::{JobBudget, Prices};
use crate::cancel::{CancelReason, CancelToken};
use crate::error_chain::error_chain;
use crate::event_sink::EventSink;
use crate::failpoint;
use crate::image::{ImageGenerator, ImageParts};
use crate::retry::retry;
use crate::settings::{JobSettings, Settings};
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::{Metrics, Stage};
use crate::telemetry::trace;
use crate::translation::Translator;
use attempt::JobAttempt;
use events::JobEvents;
use plan::Planner;
use progress::JobProgress;

pub(crate) use outcome::note_outcome;
pub use outcome::{JobOutcome, JobRunError};

/// How often a lease is renewed while it holds.
const HEARTBEATS: u32 = 4;
/// A job that loses this many workers in a row without finishing an image is assumed to crash them, and fails.
const MAX_LOSSES: u32 = 3;

/// What came with a command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Envelope<'a> {
    /// The trace that it belongs to.
    pub trace: Option<&'a TraceContext>,
    /// Whether its job sends two requests for each one of another job, while both run here.
    pub urgent: bool,
    /// How long to wait for a job whose lease another worker holds. That worker may be lost.
    pub lease_wait: Duration,
}

/// Runs attempts at jobs: what they need. Clones share everything.
#[derive(Clone)]
pub struct JobRunner {
    parts: ImageParts,
    planner: Arc<Planner>,
    jobs: JobSettings,
    max_concurrent: NonZeroUsize,
    prices: Prices,
    default_style: Arc<Style>,
    translator: Translator,
}

impl JobRunner {
    /// A runner with these parts.
    pub(crate) fn new(settings: &Settings, parts: ImageParts, translator: Translator) -> Self {
        let style = Style { cfg_scale: Some(settings.cfg_scale), steps: Some(settings.steps), ..Style::default() };
        Self {
            parts,
            planner: Arc::new(Planner::new(settings)),
            jobs: settings.jobs.clone(),
            max_concurrent: settings.stability.max_concurrent,
            prices: Prices::new(settings),
            default_style: Arc::new(style),
            translator,
        }
    }

    /// The metrics.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// The API.
    pub(crate) fn client(&self) -> &Client {
        &self.parts.client
    }

    /// The database.
    pub(crate) fn store(&self) -> &Store {
        &self.parts.store
    }

    /// Makes one attempt at a job, in the current span: until it ends, must wait, or is told to stop. `started` and `progress` events go to `sink`; the terminal
    /// event is stored and returned, and is the caller's to publish.
    ///
    /// # Errors
    ///
    /// [`JobRunError`] where our own infrastructure failed; what was finished before stays finished, and the attempt does not count.
    pub async fn run(
        &self,
        command: &Command,
        envelope: Envelope<'_>,
        sink: &dyn EventSink,
        shutdown: &Shutdown,
    ) -> Result<JobOutcome, JobRunError> {
        let claimed = match self.claim(command, envelope.lease_wait, shutdown).await? {
            None => return Ok(JobOutcome::Interrupted),
            Some(Claim::Leased) => return Ok(JobOutcome::Leased),
            Some(Claim::Conflict) => return Ok(JobOutcome::Conflict),
            Some(Claim::Ended(terminal)) => return Ok(JobOutcome::AlreadyEnded(terminal)),
            Some(Claim::Run(claimed)) => claimed,
        };
        failpoint::reach("after_claim").await;
        let (lease, attempts, created_at) = (claimed.lease, claimed.attempts, claimed.created_at);
        let tally = Tally::of(claimed.images.iter().map(|image| &image.state));
        let exhausted = too_many_losses(claimed.losses, &tally, command.config.min_success_rate());
        let cancel = CancelToken::child_of(&shutdown.stop);
        info!(total = tally.total, completed = tally.completed, attempts, first = claimed.first, "working on a job");
        let mut attempt = self.attempt(command, envelope, sink, claimed, cancel.clone());
        let outcome = if let Some(error) = exhausted {
            self.complete(&mut attempt, created_at, Some(error)).await
        } else {
            let executed = tokio::select! {
                executed = attempt.execute() => Some(executed),
                () = self.keep_lease(lease) => {
                    cancel.cancel(CancelReason::LeaseLost);
                    Some(Err(StoreError::LeaseLost.into()))
                }
                () = shutdown.grace_over.cancelled() => None,
                never = end_time_slice(self.jobs.slice, &cancel) => match never {},
            };
            // Image tasks have ended before the lease is released.
            attempt.tasks.shutdown().await;
            match executed {
                Some(Ok(())) => self.conclude(attempt, attempts, created_at).await,
                Some(Err(error)) => Err(error),
                None => {
                    // Not retried: if the database is unavailable, the lease expires by itself.
                    let _ = self.store().release(lease, false).await;
                    Ok(JobOutcome::Interrupted)
                }
            }
        };
        match outcome {
            Err(JobRunError::Store(StoreError::LeaseLost)) => {
                self.metrics().lease_lost();
                warn!("the job's lease was lost; nothing more is done for it");
                Ok(JobOutcome::LeaseLost)
            }
            Err(error) => {
                // The job need not wait until the lease runs out, which would count as a lost worker.
                let _ = retry(|| self.store().release(lease, false)).await;
                Err(error)
            }
            Ok(outcome) => Ok(outcome),
        }
    }

    /// Claims the job of a command; waits up to `lease_wait` for the lease of another worker. `None` where the wait was ended by a stop.
    async fn claim(
        &self,
        command: &Command,
        lease_wait: Duration,
        shutdown: &Shutdown,
    ) -> Result<Option<Claim>, StoreError> {
        let until = Instant::now() + lease_wait;
        let terms = ClaimTerms { lease: self.jobs.lease, usual_style: &self.default_style };
        loop {
            failpoint::reach("before_claim").await;
            let current = trace::current();
            let claiming = self.store().claim(command, current.as_ref(), terms);
            let claim = self.metrics().stage(Stage::Claim, claiming).await?;
            let earlier = match &claim {
                Claim::Run(claimed) => claimed.earlier.as_ref(),
                Claim::Ended(terminal) => terminal.event.trace.as_ref(),
                Claim::Leased | Claim::Conflict => None,
            };
            if let Some(earlier) = earlier {
                trace::link(&Span::current(), earlier);
            }
            if !matches!(claim, Claim::Leased) || Instant::now() >= until {
                return Ok(Some(claim));
            }
            if shutdown.stop.run_until_cancelled(sleep(self.jobs.held_delay())).await.is_none() {
                return Ok(None);
            }
        }
    }

    fn attempt<'a>(
        &'a self,
        command: &'a Command,
        envelope: Envelope<'a>,
        sink: &'a dyn EventSink,
        claimed: Claimed,
        cancel: CancelToken,
    ) -> JobAttempt<'a> {
        trace::note("job.images", i64::try_from(command.image_descriptions.len()).unwrap_or_default());
        trace::note("job.attempt", i64::from(claimed.attempts) + 1);
        let Claimed { lease, first, style, images, .. } = claimed;
        let config = &command.config;
        let parts = &self.parts;
        let progress = JobProgress::new(images, config.min_success_rate());
        let budget = JobBudget::new(
            parts.store.clone(),
            parts.metrics.clone(),
            self.prices,
            lease,
            cancel.clone(),
            config.max_cost_usd,
            progress.charged(),
        );
        let budget = Arc::new(budget);
        let generator = ImageGenerator::new(parts, command, envelope.urgent, lease, budget.clone(), cancel.clone());
        let asked = config.max_concurrent.and_then(|asked| NonZeroUsize::new(asked.into()));
        JobAttempt {
            command,
            lease,
            first,
            style,
            planner: &self.planner,
            translator: &self.translator,
            parts,
            max_concurrent: asked.map_or(self.max_concurrent, |asked| asked.min(self.max_concurrent)),
            budget,
            generator: Arc::new(generator),
            cancel,
            progress,
            events: JobEvents { sink, key: command.key(), trace: envelope.trace, muted: false },
            tasks: JoinSet::new(),
            database_given_up: false,
        }
    }

    /// Renews a lease; returns when it is lost.
    async fn keep_lease(&self, lease: Lease) {
        loop {
            sleep(self.jobs.lease / HEARTBEATS).await;
            match self.store().renew(lease, self.jobs.lease).await {
                Ok(()) => {}
                Err(StoreError::LeaseLost) => return,
                // Without the database nothing is paid for either, so that nothing is risked by going on.
                Err(error) => warn!(error = error_chain(&error), "the job's lease was not renewed"),
            }
        }
    }

    /// Decides what becomes of a job after an attempt that has run to its end.
    async fn conclude(
        &self,
        mut attempt: JobAttempt<'_>,
        attempts: u32,
        created_at: OffsetDateTime,
    ) -> Result<JobOutcome, JobRunError> {
        let JobAttempt { lease, ref cancel, ref progress, .. } = attempt;
        let mut attempts_left = attempts + 1 < self.jobs.max_attempts.get();
        if progress.was_cut_short() && cancel.is_stopping() {
            // An attempt that the worker itself cut short has not failed, and does not count.
            retry(|| self.store().release(lease, false)).await?;
            return Ok(JobOutcome::Interrupted);
        }
        if progress.was_cut_short() && cancel.reason() == Some(&CancelReason::Preempted) {
            let advanced = progress.has_advanced();
            if advanced || attempts_left {
                // A time slice without a result counts as an attempt, so that no job is preempted forever.
                retry(|| self.store().release(lease, !advanced)).await?;
                return Ok(JobOutcome::Preempted);
            }
            attempts_left = false;
        }
        let (tally, rate, fatal) = (progress.tally(), progress.min_success_rate, progress.fatal.as_ref());
        match decide(&tally, rate, fatal.map(|(code, _)| *code), attempts_left) {
            Decision::Complete => self.complete(&mut attempt, created_at, None).await,
            Decision::Fail(code) => {
                let counts =
                    format!("{} of {} images were made; min_success_rate is {rate}", tally.completed, tally.total);
                let message = match fatal {
                    Some((fatal, message)) if *fatal == code => format!("{message}; {counts}"),
                    _ => counts,
                };
                self.complete(&mut attempt, created_at, Some(JobError { code, message })).await
            }
            Decision::TryAgain => {
                retry(|| self.store().release(lease, true)).await?;
                let delay = self.jobs.delay_after(attempts + 1);
                let missing = tally.total - tally.completed;
                warn!(completed = tally.completed, missing, ?delay, "the job is tried again later");
                Ok(JobOutcome::RetryAfter(delay))
            }
        }
    }

    /// Ends a job: its outcome and its terminal event are stored together.
    async fn complete(
        &self,
        attempt: &mut JobAttempt<'_>,
        created_at: OffsetDateTime,
        error: Option<JobError>,
    ) -> Result<JobOutcome, JobRunError> {
        let JobAttempt { progress, events, lease, .. } = attempt;
        let not_attempted = progress.mark_not_attempted();
        let context = events.context();
        let cost_usd = self.prices.cost(progress.charged());
        let duration_ms = u64::try_from((context.time - created_at).whole_milliseconds()).unwrap_or_default();
        let images = progress.images();
        let states: Vec<ImageState> = images.iter().map(|(_, state)| state.clone()).collect();
        let event = Event::terminal(&context, &states, Totals { cost_usd, duration_ms }, error.as_ref());
        let ending = Ending { lease: *lease, images: &images, error: error.as_ref(), cost_usd, event: &event };
        self.metrics().stage(Stage::Decide, retry(|| self.store().finish(&ending))).await?;
        let tally = progress.tally();
        let took = Duration::from_millis(duration_ms);
        self.metrics().job_ended(tally.completed, tally.total, took, error.is_none());
        for _ in 0..not_attempted {
            self.metrics().image_failed(ImageFailureCode::NotAttempted);
        }
        trace::note("job.succeeded", i64::from(tally.completed));
        trace::note("job.failed", i64::from(tally.failed()));
        trace::note("job.from_cache", i64::from(tally.from_cache));
        trace::note("job.cost_usd", cost_usd);
        for (index, failure) in progress.unannounced_failures() {
            events.publish(&Event::progress(&events.context(), index, Some(failure), &tally)).await;
        }
        let (succeeded, failed) = (tally.completed, tally.failed());
        match &error {
            None => info!(succeeded, failed, cost_usd, duration_ms, "the job is completed"),
            Some(JobError { code, message }) => {
                trace::failed(code.as_str(), message);
                let (code, reason) = (code.as_str(), message);
                warn!(code, reason, succeeded, failed, cost_usd, duration_ms, "the job has failed");
            }
        }
        Ok(JobOutcome::Ended(TerminalEvent::new(event, error.map(|error| error.code))))
    }
}

/// The error of a job that lost too many workers in a row; `None` if it may be attempted or can complete now.
fn too_many_losses(losses: u32, tally: &Tally, min_success_rate: f64) -> Option<JobError> {
    let completes = matches!(decide(tally, min_success_rate, None, true), Decision::Complete);
    (losses >= MAX_LOSSES && !completes).then(|| JobError {
        code: JobFailureCode::AttemptsExhausted,
        message: format!("its worker was lost {losses} times in a row before an image was finished"),
    })
}

/// Cancels an attempt when its time slice is over; never returns.
async fn end_time_slice(length: Duration, cancel: &CancelToken) -> Infallible {
    sleep(length).await;
    if cancel.cancel(CancelReason::Preempted) {
        info!(slice = ?length, "the job's time slice is over; no new image is begun");
    }
    std::future::pending().await
}
