//! A job, from its claim to its end. Knows no broker: `run` and `generate` both come through here.

mod begin;
mod board;
mod cache;
mod end;
mod keep;
mod make;
mod money;
mod patience;
mod plan;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::command::Command;
use domain::event::{Context, Event, JobError};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{Decision, decide};
use domain::style::Style;
use domain::trace::TraceContext;
use picture::Glance;
use stability_client::Client;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{Span, info, warn};

use crate::causes;
use crate::event_sink::EventSink;
use crate::finisher::Finisher;
use crate::pause;
use crate::settings::{JobSettings, Settings};
use crate::storage::Storage;
use crate::store::{Claim, ClaimTerms, Claimed, Lease, Store, StoreError, TerminalEvent};
use crate::telemetry::metrics::{Coded, JobOutcome, Metrics, Stage, names};
use crate::telemetry::trace;
use crate::translation::Translator;
use board::Board;
use money::Prices;
use plan::{Plan, Planner};

/// What is asked of the API, by index.
type Plans = BTreeMap<u32, Plan>;

/// A lease is renewed so many times before it would run out.
const HEARTBEATS: u32 = 4;
/// A job whose worker is lost so often in a row, without an image being finished, is taken to be the cause.
const MAX_LOSSES: u32 = 3;

/// Why a job could not be worked on: our own infrastructure failed.
#[derive(Debug, thiserror::Error)]
pub enum JobRunError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Coded for JobRunError {
    fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
        }
    }
}

/// What came with a command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Envelope<'a> {
    /// The trace that it belongs to.
    pub trace: Option<&'a TraceContext>,
    /// Whether its job sends two requests for each one of another job, while both are worked on here.
    pub urgent: bool,
}

/// How a run is told to stop.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// No new request is sent; what is in flight comes to its end.
    pub soon: CancellationToken,
    /// What is in flight is dropped.
    pub now: CancellationToken,
}

/// What a run of a job came to.
#[derive(Debug)]
pub enum Verdict {
    /// It has ended, now or before; its terminal event is stored.
    Ended(TerminalEvent, JobOutcome),
    /// What is missing shall be tried again after this wait.
    TryAgain(Duration),
    /// We were told to stop; the rest is for whoever gets it next.
    Interrupted,
    /// It has had its slice; the rest comes after the jobs that wait.
    Yielded,
    /// Somebody is working on it already.
    Held,
    /// Somebody else has claimed it meanwhile; nothing that we do has any effect.
    LeaseLost,
    /// The id belongs to another command.
    Conflict,
}

impl Verdict {
    /// For metrics and spans.
    pub(crate) fn outcome(&self) -> JobOutcome {
        match self {
            Self::Ended(_, outcome) => *outcome,
            Self::TryAgain(_) => JobOutcome::Retried,
            Self::Interrupted => JobOutcome::Interrupted,
            Self::Yielded => JobOutcome::Yielded,
            Self::Held => JobOutcome::Held,
            Self::LeaseLost => JobOutcome::LeaseLost,
            Self::Conflict => JobOutcome::Conflict,
        }
    }
}

/// What jobs are made with. Clones share everything.
#[derive(Clone)]
pub struct Workshop {
    store: Store,
    storage: Storage,
    client: Client,
    finisher: Finisher,
    planner: Arc<Planner>,
    jobs: JobSettings,
    max_concurrent: NonZeroUsize,
    /// Retries of a request.
    retries: usize,
    prices: Prices,
    usual_style: Arc<Style>,
    translator: Translator,
    metrics: Metrics,
}

impl Workshop {
    /// Brings the parts together.
    pub fn new(
        settings: &Settings,
        store: Store,
        storage: Storage,
        client: Client,
        translator: Translator,
        metrics: Metrics,
    ) -> Self {
        let glance = Glance { min_sharpness: settings.min_sharpness };
        let finisher = Finisher::new(settings.image, glance);
        show_bounds(&metrics, &client, &finisher, settings);
        Self {
            store,
            storage,
            client,
            finisher,
            planner: Arc::new(Planner::new(settings)),
            jobs: settings.jobs.clone(),
            max_concurrent: settings.stability.max_concurrent,
            retries: settings.stability.retry_delays.len(),
            prices: Prices::new(settings),
            usual_style: Arc::new(Style {
                cfg_scale: Some(settings.cfg_scale),
                steps: Some(settings.steps),
                ..Style::default()
            }),
            translator,
            metrics,
        }
    }

    /// Where it counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The API.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Works on a job, in the span that the caller is in, until it ends, must wait, or is told to stop. Events for watching go to `sink`; the terminal event is
    /// stored and given back, and is the caller's to publish.
    ///
    /// # Errors
    ///
    /// [`JobRunError`] where our own infrastructure failed; what was finished before stays finished.
    pub async fn run(
        &self,
        command: &Command,
        envelope: Envelope<'_>,
        sink: &dyn EventSink,
        stop: &Stopping,
    ) -> Result<Verdict, JobRunError> {
        let verdict = self.worked_on(command, envelope, sink, stop).await;
        let outcome = match &verdict {
            Ok(verdict) => verdict.outcome(),
            Err(error) => JobOutcome::Broken(error.code()),
        };
        trace::note("job.outcome", outcome.as_str());
        verdict
    }

    async fn worked_on(
        &self,
        command: &Command,
        envelope: Envelope<'_>,
        sink: &dyn EventSink,
        stop: &Stopping,
    ) -> Result<Verdict, JobRunError> {
        pause::point("before the claim").await;
        let terms = ClaimTerms { lease: self.jobs.lease, usual_style: &self.usual_style };
        let here = trace::current();
        let claiming = self.store.claim(command, here.as_ref(), terms);
        let claimed = match self.metrics.stage(Stage::Claim, claiming).await? {
            Claim::Run(claimed) => claimed,
            Claim::Held => return Ok(Verdict::Held),
            Claim::Finished(terminal) => {
                if let Some(earlier) = &terminal.event.trace {
                    trace::link(&Span::current(), earlier);
                }
                return Ok(Verdict::Ended(terminal, JobOutcome::Repeated));
            }
            Claim::Conflict => return Ok(Verdict::Conflict),
        };
        if let Some(earlier) = &claimed.earlier {
            trace::link(&Span::current(), earlier);
        }
        trace::note("job.images", i64::try_from(command.image_descriptions.len()).unwrap_or_default());
        trace::note("job.attempt", i64::from(claimed.attempts) + 1);
        pause::point("after the claim").await;
        let lease = claimed.lease;
        let slice = stop.soon.child_token();
        let unheard = AtomicBool::new(false);
        let done = CancellationToken::new();
        let stopped = &stop.soon;
        let run =
            Run { workshop: self, command, envelope, sink, stop: stopped, slice: &slice, done: &done, lease, unheard };
        let verdict = tokio::select! {
            verdict = run.to_verdict(claimed) => verdict,
            () = self.hold(lease, &done) => Err(StoreError::LeaseLost.into()),
            () = end_slice(&slice, self.jobs.slice) => Ok(Verdict::Yielded),
            () = stop.now.cancelled() => {
                // So that whoever comes next need not wait for the lease to run out; where this fails it does.
                let _ = self.store.put_down(lease, false).await;
                Ok(Verdict::Interrupted)
            }
        };
        match verdict {
            Err(JobRunError::Store(StoreError::LeaseLost)) => {
                self.metrics.lease_lost();
                warn!("the job's lease was lost; nothing more is done for it");
                Ok(Verdict::LeaseLost)
            }
            Err(error) => {
                // So that the job need not wait for the lease to run out, which would count as a loss.
                let _ = self.patiently(|| self.store.put_down(lease, false)).await;
                Err(error)
            }
            verdict => verdict,
        }
    }

    /// Renews a lease until the work is `done`; ends only where it is lost.
    async fn hold(&self, lease: Lease, done: &CancellationToken) {
        loop {
            tokio::time::sleep(self.jobs.lease / HEARTBEATS).await;
            if done.is_cancelled() {
                break;
            }
            match self.store.renew(lease, self.jobs.lease).await {
                Ok(()) => {}
                Err(StoreError::LeaseLost) if done.is_cancelled() => break,
                Err(StoreError::LeaseLost) => return,
                // Without the database nothing is paid for either, so that nothing is risked by going on.
                Err(error) => warn!(error = causes::joined(&error), "the job's lease was not renewed"),
            }
        }
        std::future::pending::<()>().await;
    }
}

/// Lets the gauges show how many are in flight, and how many may be.
fn show_bounds(metrics: &Metrics, client: &Client, finisher: &Finisher, settings: &Settings) {
    let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    let (client, limit) = (client.clone(), count(settings.stability.max_concurrent.get()));
    metrics.gauge(&names::REQUESTS_IN_FLIGHT, &[], move || Some(count(client.in_flight())));
    metrics.gauge(&names::REQUESTS_LIMIT, &[], move || Some(limit));
    let (finisher, limit) = (finisher.clone(), count(finisher.slots()));
    metrics.gauge(&names::FINISHER_IN_FLIGHT, &[], move || Some(count(finisher.in_flight())));
    metrics.gauge(&names::FINISHER_LIMIT, &[], move || Some(limit));
}

/// Ends a slice when its time is over; never returns.
async fn end_slice(slice: &CancellationToken, length: Duration) {
    tokio::time::sleep(length).await;
    info!(slice = ?length, "the job has had its slice; no new image is begun");
    slice.cancel();
    std::future::pending::<()>().await;
}

/// One try of one job.
struct Run<'a> {
    workshop: &'a Workshop,
    command: &'a Command,
    envelope: Envelope<'a>,
    sink: &'a dyn EventSink,
    stop: &'a CancellationToken,
    /// Cancelled by `stop`, and when the job has had its slice.
    slice: &'a CancellationToken,
    /// Cancelled before the lease is put down.
    done: &'a CancellationToken,
    lease: Lease,
    /// An event for watching could not be sent; no further one is tried, since each may wait long for a broker in trouble.
    unheard: AtomicBool,
}

impl Run<'_> {
    async fn to_verdict(&self, claimed: Claimed) -> Result<Verdict, JobRunError> {
        let Claimed { lease: _, losses, first, earlier: _, attempts, created_at, style, images } = claimed;
        let board = Board::new(images, &self.command.image_descriptions, self.min_success_rate(), self.slice);
        let tally = board.tally();
        let ended_before = tally.completed + tally.failed_for_good;
        info!(total = tally.total, completed = tally.completed, attempts, first, "working on a job");
        if first {
            self.announce(&Event::started(&self.context(), tally.total)).await;
        }
        let would_end = decide(&tally, self.min_success_rate(), None, true);
        if losses >= MAX_LOSSES && !matches!(would_end, Decision::Complete) {
            let code = JobFailureCode::AttemptsExhausted;
            let message = format!("its worker was lost {losses} times in a row before an image was finished");
            return self.end(&board, created_at, Some(JobError { code, message })).await;
        }
        let plans = self.begun(&board, &style).await?;
        self.fill_from_cache(&board, &plans).await?;
        let mut tries_left = attempts + 1 < self.workshop.jobs.max_attempts.get();
        let tally = board.tally();
        let cut_off = board.was_cut_off() && board.fatal().is_none() && tally.reachable(self.min_success_rate());
        if cut_off && self.stop.is_cancelled() {
            // A try that we cut off ourselves has not failed, and does not count.
            self.put_down(false).await?;
            return Ok(Verdict::Interrupted);
        }
        if cut_off && self.slice.is_cancelled() {
            let progress = tally.completed + tally.failed_for_good > ended_before;
            if progress || tries_left {
                // A slice without progress counts as a try, so that nothing circles forever.
                self.put_down(!progress).await?;
                return Ok(Verdict::Yielded);
            }
            tries_left = false;
        }
        match decide(&tally, self.min_success_rate(), board.fatal(), tries_left) {
            Decision::Complete => self.end(&board, created_at, None).await,
            Decision::Fail(code) => {
                let error = JobError { code, message: self.why(code, &board) };
                self.end(&board, created_at, Some(error)).await
            }
            Decision::TryAgain => {
                self.put_down(true).await?;
                let delay = self.workshop.jobs.delay_after(attempts + 1);
                warn!(
                    completed = tally.completed,
                    missing = tally.total - tally.completed,
                    ?delay,
                    "the job is tried again later"
                );
                Ok(Verdict::TryAgain(delay))
            }
        }
    }

    fn min_success_rate(&self) -> f64 {
        self.command.config.min_success_rate()
    }

    fn context(&self) -> Context {
        let trace = trace::current().or_else(|| self.envelope.trace.cloned());
        Context { key: self.command.key(), trace, time: OffsetDateTime::now_utc() }
    }

    /// Sends an event that is for watching only: that it cannot be sent is no reason to stop.
    async fn announce(&self, event: &Event) {
        if self.unheard.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.sink.publish(event).await {
            self.unheard.store(true, Ordering::Relaxed);
            warn!(%error, event = event.kind.as_str(), "an event was not published, nor are others of this try");
        }
    }

    async fn announce_progress(&self, board: &Board, index: u32, failure: Option<ImageFailureCode>) {
        board.mark_announced(index);
        self.announce(&Event::progress(&self.context(), index, failure, &board.tally())).await;
    }
}
