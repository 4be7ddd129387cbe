//! Runs one attempt at a job: claims it, renews its lease, makes its images, and ends or releases it.
//!
//! Independent of the broker: the subcommands `run` and `generate` both use it.

mod attempt;
mod events;
mod outcome;
mod over;
pub(crate) mod plan;
mod progress;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use celery::Reply;
use domain::command::Command;
use domain::event::{Event, JobError, Totals};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{Decision, ImageState, Tally, decide};
use domain::style::Style;
use domain::trace::TraceContext;
use serde_json::Value;
use stability_client::{Client, Engine};
use store::{Claim, ClaimOptions, ClaimedJob, Finish, JobEnd, Lease, Probe, Store, StoreError, TerminalEvent};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{Span, info, warn};

use crate::budget::JobBudget;
use crate::cancel::{CancelReason, CancelToken, cancel_when_interrupted, interrupt_admitted_job, preempt_after};
use crate::cost_policy::CostPolicy;
use crate::error_chain::error_chain;
use crate::event_sink::EventSink;
use crate::failpoint;
use crate::gate::{AccountGate, Intake};
use crate::image::{ImageGenerator, ImageResources};
use crate::image_pool::ImagePool;
use crate::outage::retry_store;
use crate::presence::host_name;
use crate::settings::{JobSettings, Settings};
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::{Metrics, Stage};
use crate::telemetry::trace;
use crate::translation::Translator;
use attempt::JobAttempt;
use events::JobEvents;
use plan::Planner;
use progress::JobProgress;

pub(crate) use outcome::record_outcome;
pub use outcome::{JobOutcome, JobRunError};

/// Lease renewals per lease duration.
const HEARTBEATS_PER_LEASE: u32 = 4;
/// A job whose lease expires this many times in a row without an image being completed is assumed to crash its
/// workers, and fails unless its completed images suffice.
const MAX_WORKER_LOSSES: u32 = 3;

/// Trace, priority and lease wait of one call of [`JobRunner::run`].
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions<'a> {
    /// The trace context that the command was published with.
    pub trace: Option<&'a TraceContext>,
    /// Whether the job gets two request turns for each turn of another job in this process.
    pub urgent: bool,
    /// Who is told about the job beside the consumers of its events; stored at its first claim.
    pub reply: Option<&'a Value>,
    /// How long to wait for the job's lease if another worker holds it. That worker may be lost.
    pub lease_wait: Duration,
}

/// Runs attempts at jobs. Clones share their resources.
#[derive(Clone)]
pub struct JobRunner {
    resources: ImageResources,
    gate: AccountGate,
    planner: Arc<Planner>,
    settings: JobSettings,
    max_concurrent: NonZeroUsize,
    cost_policy: CostPolicy,
    default_style: Arc<Style>,
    default_engine: Engine,
    translator: Translator,
}

impl JobRunner {
    pub(crate) fn new(
        settings: &Settings,
        resources: ImageResources,
        gate: AccountGate,
        translator: Translator,
    ) -> Self {
        Self {
            gate,
            resources,
            planner: Arc::new(Planner::new(settings)),
            settings: settings.jobs.clone(),
            max_concurrent: settings.stability.max_concurrent,
            cost_policy: CostPolicy::new(settings),
            default_style: Arc::new(settings.default_style()),
            default_engine: settings.stability.engine,
            translator,
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.resources.metrics
    }

    pub(crate) fn client(&self) -> &Client {
        &self.resources.client
    }

    pub(crate) fn image_pool(&self) -> &ImagePool {
        &self.resources.pool
    }

    pub(crate) fn store(&self) -> &Store {
        &self.resources.store
    }

    pub(crate) fn gate(&self) -> &AccountGate {
        &self.gate
    }

    /// Runs one attempt at a job in the current span, until the job ends, has to wait, or is interrupted.
    ///
    /// Publishes `started` and `progress` events to `sink`. Stores the terminal event and returns it for publishing.
    ///
    /// # Errors
    ///
    /// [`JobRunError`] if the worker's own infrastructure failed. Images completed before stay completed, and the
    /// attempt is not counted.
    pub async fn run(
        &self,
        command: &Command,
        options: RunOptions<'_>,
        sink: &dyn EventSink,
        shutdown: &Shutdown,
    ) -> Result<JobOutcome, JobRunError> {
        // Read anew, so that nothing is translated for a job that cannot pay.
        let probe = match self.gate.refresh().await {
            Intake::All => None,
            Intake::One(probe) => Some(probe),
            Intake::Closed => return Ok(JobOutcome::GateClosed),
        };
        let claimed = match self.claim(command, options, shutdown).await? {
            None => return Ok(JobOutcome::Interrupted),
            Some(Claim::Leased) => return Ok(JobOutcome::Leased),
            Some(Claim::Purged) => return Ok(JobOutcome::Purged),
            Some(Claim::Conflict) => return Ok(JobOutcome::Conflict),
            Some(Claim::Ended(terminal)) => return Ok(JobOutcome::AlreadyEnded(terminal)),
            Some(Claim::Acquired(claimed)) => claimed,
        };
        failpoint::reach("after_claim").await;
        let (lease, attempts, created_at) = (claimed.lease, claimed.attempts, claimed.created_at);
        let over = claimed.over.clone();
        let tally = Tally::from_images(claimed.images.iter().map(|image| &image.state));
        let exhausted_error = check_worker_losses(claimed.lease_losses, &tally, command.config.min_success_rate());
        let cancel = CancelToken::child_of(&shutdown.stop);
        info!(
            total = tally.total,
            completed = tally.completed,
            attempts,
            first = claimed.first_claim,
            "job attempt started"
        );
        let mut attempt = self.build_attempt(command, options, sink, *claimed, probe, cancel.clone());
        let outcome = if let Some(over) = over {
            self.end_over(&mut attempt, created_at, over).await
        } else if let Some(error) = exhausted_error {
            self.end_job(&mut attempt, created_at, Some(error)).await
        } else {
            let result = tokio::select! {
                result = attempt.execute() => Some(result),
                () = self.renew_lease_until_lost(lease) => {
                    cancel.cancel(CancelReason::LeaseLost);
                    Some(Err(StoreError::LeaseLost.into()))
                }
                () = shutdown.grace_expired.cancelled() => None,
                never = preempt_after(self.settings.time_slice, &cancel) => match never {},
                never = interrupt_admitted_job(&self.gate, probe, &cancel) => match never {},
                never = cancel_when_interrupted(&self.gate, probe, &cancel) => match never {},
                never = self.cancel_when_over(lease.job_id, &cancel) => match never {},
            };
            // No image task may run after the lease is released.
            attempt.tasks.shutdown().await;
            match result {
                Some(Ok(())) => self.decide_outcome(attempt, attempts, created_at).await,
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
                self.metrics().record_lease_loss();
                warn!("job lease lost; attempt aborted");
                Ok(JobOutcome::LeaseLost)
            }
            Err(error) => {
                // Letting the lease expire would delay the job and count as a lost worker.
                let _ = retry_store(|| self.store().release(lease, false)).await;
                Err(error)
            }
            Ok(outcome) => Ok(outcome),
        }
    }

    /// Claims the job of a command, waiting up to the option `lease_wait` while another worker holds the lease.
    ///
    /// Returns `None` if a shutdown interrupted the wait.
    async fn claim(
        &self,
        command: &Command,
        options: RunOptions<'_>,
        shutdown: &Shutdown,
    ) -> Result<Option<Claim>, StoreError> {
        let deadline = Instant::now() + options.lease_wait;
        let terms = self.claim_options(options.reply);
        loop {
            failpoint::reach("before_claim").await;
            let current_trace = trace::current_context();
            let claiming = self.store().claim(command, current_trace.as_ref(), terms);
            let claim = self.metrics().run_stage(Stage::Claim, claiming).await?;
            let earlier_trace = match &claim {
                Claim::Acquired(claimed) => claimed.previous_trace.as_ref(),
                Claim::Ended(terminal) => terminal.event.trace.as_ref(),
                Claim::Leased | Claim::Purged | Claim::Conflict => None,
            };
            if let Some(earlier_trace) = earlier_trace {
                trace::add_link(&Span::current(), earlier_trace);
            }
            if !matches!(claim, Claim::Leased) || Instant::now() >= deadline {
                return Ok(Some(claim));
            }
            if shutdown.stop.run_until_cancelled(sleep(self.settings.leased_delay())).await.is_none() {
                return Ok(None);
            }
        }
    }

    fn claim_options<'a>(&'a self, reply: Option<&'a Value>) -> ClaimOptions<'a> {
        ClaimOptions {
            reply,
            lease_duration: self.settings.lease,
            default_style: &self.default_style,
            default_engine: self.default_engine.id(),
            worker: host_name(),
        }
    }

    fn build_attempt<'a>(
        &'a self,
        command: &'a Command,
        options: RunOptions<'a>,
        sink: &'a dyn EventSink,
        claimed: ClaimedJob,
        probe: Option<Probe>,
        cancel: CancelToken,
    ) -> JobAttempt<'a> {
        trace::set_attribute("job.images", i64::try_from(command.image_descriptions.len()).unwrap_or_default());
        trace::set_attribute("job.attempt", i64::from(claimed.attempts) + 1);
        let ClaimedJob {
            lease,
            first_claim: first,
            lease_losses,
            origin,
            reply,
            style,
            engine,
            images,
            attempts,
            cost,
            ..
        } = claimed;
        let reply = reply.as_ref().and_then(Reply::from_stored);
        let config = &command.config;
        let resources = &self.resources;
        let progress = JobProgress::new(images, config.min_success_rate());
        // Planning rejects an unknown name, so that nothing is paid for.
        let prices =
            self.cost_policy.request_prices(engine.parse().unwrap_or_default(), config.upscaler.unwrap_or_default());
        let budget = JobBudget::new(
            self.gate.clone(),
            resources.metrics.clone(),
            resources.unstored.clone(),
            self.cost_policy,
            prices,
            lease,
            cancel.clone(),
            config.max_cost_usd,
            probe,
            cost,
        );
        let budget = Arc::new(budget);
        let generator =
            ImageGenerator::new(resources, &self.gate, command, options.urgent, lease, budget.clone(), cancel.clone());
        JobAttempt {
            command,
            lease,
            is_first_claim: first,
            origin,
            style,
            engine,
            planner: &self.planner,
            translator: &self.translator,
            resources,
            max_concurrent: config.max_concurrent(self.max_concurrent),
            budget,
            generator: Arc::new(generator),
            cancel,
            progress,
            events: JobEvents { sink, key: command.key(), trace: options.trace, reply, publishing_failed: false },
            tasks: JoinSet::new(),
            is_last_attempt: !self.has_attempts_left(attempts),
            database_unavailable: false,
            lease_losses,
        }
    }

    /// Renews a lease periodically; returns when the lease is lost.
    async fn renew_lease_until_lost(&self, lease: Lease) {
        loop {
            sleep(self.settings.lease / HEARTBEATS_PER_LEASE).await;
            match self.store().renew(lease, self.settings.lease).await {
                Ok(()) => {}
                Err(StoreError::LeaseLost) => return,
                // Continuing is safe: while the database is unavailable, no request can be reserved, so none is sent.
                Err(error) => warn!(error = error_chain(&error), "job lease renewal failed; attempt continues"),
            }
        }
    }

    /// Decides the outcome of a job after an attempt that ran to its end.
    async fn decide_outcome(
        &self,
        mut attempt: JobAttempt<'_>,
        attempts: u32,
        created_at: OffsetDateTime,
    ) -> Result<JobOutcome, JobRunError> {
        let JobAttempt { lease, ref cancel, ref progress, .. } = attempt;
        if let Some(CancelReason::JobOver(over)) = cancel.reason().cloned() {
            return self.end_over(&mut attempt, created_at, over).await;
        }
        let mut attempts_left = self.has_attempts_left(attempts);
        let must_return = cancel.is_stopping()
            || matches!(cancel.reason(), Some(CancelReason::GateOpened | CancelReason::KeyReplaced));
        if progress.was_cut_short() && must_return {
            // The worker interrupted the attempt: it has not failed and is not counted.
            retry_store(|| self.store().release(lease, false)).await?;
            return Ok(JobOutcome::Interrupted);
        }
        if progress.was_cut_short() && cancel.reason() == Some(&CancelReason::GateClosed) {
            retry_store(|| self.store().release(lease, false)).await?;
            return Ok(JobOutcome::GateClosed);
        }
        if progress.was_cut_short() && cancel.reason() == Some(&CancelReason::DailyBudget) {
            retry_store(|| self.store().release(lease, false)).await?;
            // Not taken while requests of other jobs may still be refunded: the job then waits on the queue.
            let is_open = self.gate.refresh().await != Intake::Closed;
            let delay = self.settings.retry_delays.iter().max().copied().unwrap_or_default();
            return Ok(if is_open { JobOutcome::RetryAfter(delay) } else { JobOutcome::GateClosed });
        }
        if progress.was_cut_short() && cancel.reason() == Some(&CancelReason::Preempted) {
            let advanced = progress.made_progress();
            if advanced || attempts_left {
                // A time slice without progress counts as an attempt, so that no job is preempted forever.
                retry_store(|| self.store().release(lease, !advanced)).await?;
                return Ok(JobOutcome::Preempted);
            }
            attempts_left = false;
        }
        if progress.storage_unavailable {
            return self.retry_job(&attempt, attempts).await;
        }
        let (tally, rate, fatal) = (progress.tally(), progress.min_success_rate, progress.fatal_cause.as_ref());
        match decide(&tally, rate, fatal.map(|(code, _)| *code), attempts_left) {
            Decision::Complete => self.end_job(&mut attempt, created_at, None).await,
            Decision::Fail(code) => {
                let counts =
                    format!("{} of {} images completed; min_success_rate is {rate}", tally.completed, tally.total);
                let message = match fatal {
                    Some((fatal, message)) if *fatal == code => format!("{message}; {counts}"),
                    _ => counts,
                };
                self.end_job(&mut attempt, created_at, Some(JobError { code, message })).await
            }
            Decision::Retry => self.retry_job(&attempt, attempts).await,
        }
    }

    /// Whether a job with this number of ended attempts has another attempt after the current one.
    fn has_attempts_left(&self, ended: u32) -> bool {
        ended + 1 < self.settings.max_attempts.get()
    }

    /// Counts the attempt, and releases the job for its next one.
    async fn retry_job(&self, attempt: &JobAttempt<'_>, ended: u32) -> Result<JobOutcome, JobRunError> {
        let (lease, tally) = (attempt.lease, attempt.progress.tally());
        retry_store(|| self.store().release(lease, true)).await?;
        let delay = self.settings.job_retry_delay(ended + 1);
        let missing = tally.total - tally.completed;
        warn!(completed = tally.completed, missing, ?delay, "job will be retried after a delay");
        Ok(JobOutcome::RetryAfter(delay))
    }

    /// Ends a job: stores its outcome and its terminal event together. A job that was cancelled before ends as such.
    async fn end_job(
        &self,
        attempt: &mut JobAttempt<'_>,
        created_at: OffsetDateTime,
        error: Option<JobError>,
    ) -> Result<JobOutcome, JobRunError> {
        let JobAttempt { progress, events, lease, budget, origin, .. } = attempt;
        let not_attempted = progress.mark_not_attempted();
        let context = events.context();
        let cost_usd = budget.cost_usd();
        let duration_ms = u64::try_from((context.time - created_at).whole_milliseconds()).unwrap_or_default();
        let images = progress.image_states();
        let states: Vec<ImageState> = images.iter().map(|(_, state)| state.clone()).collect();
        let totals = Totals { cost_usd, duration_ms };
        let event = Event::terminal(&context, &states, origin.as_ref(), totals, error.as_ref());
        let messages = events.reply.as_ref().map(|reply| reply.end(&event, context.time)).unwrap_or_default();
        let ending = JobEnd {
            lease: *lease,
            images: &images,
            error: error.as_ref(),
            cost_usd,
            event: &event,
            messages: &messages,
        };
        failpoint::reach("before_finish").await;
        let finishing = retry_store(|| self.store().finish(&ending));
        if let Finish::Over(over) = self.metrics().run_stage(Stage::Finalize, finishing).await? {
            return Box::pin(self.end_job(attempt, created_at, over.error(false))).await;
        }
        let tally = progress.tally();
        let duration = Duration::from_millis(duration_ms);
        self.metrics().record_job_end(tally.completed, tally.total, duration, error.is_none());
        for _ in 0..not_attempted {
            self.metrics().record_image_failed(ImageFailureCode::NotAttempted);
        }
        trace::set_attribute("job.succeeded", i64::from(tally.completed));
        trace::set_attribute("job.failed", i64::from(tally.failed()));
        trace::set_attribute("job.from_cache", i64::from(tally.from_cache));
        trace::set_attribute("job.cost_usd", cost_usd);
        for (index, failure) in progress.unannounced_failures() {
            events.publish(&Event::progress(&events.context(), index, Some(failure), &tally)).await;
        }
        let (succeeded, failed) = (tally.completed, tally.failed());
        match &error {
            None => info!(succeeded, failed, cost_usd, duration_ms, "job completed"),
            Some(JobError { code, message }) => {
                trace::set_error(code.as_str(), message);
                let (code, reason) = (code.as_str(), message);
                warn!(code, reason, succeeded, failed, cost_usd, duration_ms, "job failed");
            }
        }
        let reply = events.reply.as_ref().map(Reply::to_stored);
        Ok(JobOutcome::Ended(TerminalEvent::new(event, error.map(|error| error.code), reply)))
    }
}

/// Returns the error of a job that lost too many workers in a row, unless its completed images suffice to complete it.
fn check_worker_losses(losses: u32, tally: &Tally, min_success_rate: f64) -> Option<JobError> {
    let completes = matches!(decide(tally, min_success_rate, None, true), Decision::Complete);
    (losses >= MAX_WORKER_LOSSES && !completes).then(|| JobError {
        code: JobFailureCode::AttemptsExhausted,
        message: format!("the job lost its worker {losses} times in a row without completing an image"),
    })
}
