//! A job, from its claim to its end. Knows no broker: `run` and `generate` both come through here.

mod board;
mod make;
mod plan;
mod running;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::command::Command;
use domain::event::{Context, Event, JobError, Totals};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{Decision, ImageState, decide};
use domain::trace::TraceParent;
use futures_util::{StreamExt, stream};
use stability_client::Client;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::event_sink::EventSink;
use crate::picture::Finisher;
use crate::settings::{JobSettings, Settings};
use crate::storage::Storage;
use crate::store::{Claim, Claimed, Ending, Store, StoreError, TerminalEvent};
use board::Board;
use plan::Planner;
use running::Running;

/// Why a job could not be worked on: our own infrastructure failed.
#[derive(Debug, thiserror::Error)]
pub enum JobRunError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a run of a job came to.
#[derive(Debug)]
pub enum Verdict {
    /// It has ended, now or before; its terminal event is stored.
    Ended(TerminalEvent),
    /// What is missing shall be tried again after this wait.
    TryAgain(std::time::Duration),
    /// We were told to stop; the rest is for whoever gets it next.
    Interrupted,
    /// This process is working on it already.
    Held,
    /// The id belongs to another command.
    Conflict,
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
    cost_per_image_usd: f64,
    running: Running,
}

impl Workshop {
    /// Brings the parts together.
    pub fn new(settings: &Settings, store: Store, storage: Storage, client: Client) -> Self {
        Self {
            store,
            storage,
            client,
            finisher: Finisher::new(settings.image),
            planner: Arc::new(Planner::new(settings)),
            jobs: settings.jobs.clone(),
            max_concurrent: settings.stability.max_concurrent,
            cost_per_image_usd: settings.stability.cost_per_image_usd,
            running: Running::default(),
        }
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Works on a job until it ends, must wait, or `stop` is cancelled. Events for watching go to `sink`; the terminal event is
    /// stored and given back, and is the caller's to publish.
    ///
    /// # Errors
    ///
    /// [`JobRunError`] where our own infrastructure failed; what was finished before stays finished.
    pub async fn run(
        &self,
        command: &Command,
        trace: Option<&TraceParent>,
        sink: &dyn EventSink,
        stop: &CancellationToken,
    ) -> Result<Verdict, JobRunError> {
        let Some(_held) = self.running.hold(command.job_id) else { return Ok(Verdict::Held) };
        let claimed = match self.store.claim(command, trace).await? {
            Claim::Run(claimed) => claimed,
            Claim::Finished(terminal) => return Ok(Verdict::Ended(terminal)),
            Claim::Conflict => return Ok(Verdict::Conflict),
        };
        let run = Run { workshop: self, command, trace, sink, stop, unheard: AtomicBool::new(false) };
        run.to_verdict(claimed).await
    }
}

/// One try of one job.
struct Run<'a> {
    workshop: &'a Workshop,
    command: &'a Command,
    trace: Option<&'a TraceParent>,
    sink: &'a dyn EventSink,
    stop: &'a CancellationToken,
    /// An event for watching could not be sent; no further one is tried, since each may wait long for a broker in trouble.
    unheard: AtomicBool,
}

impl Run<'_> {
    async fn to_verdict(&self, claimed: Claimed) -> Result<Verdict, JobRunError> {
        let (attempts, created_at, first) = (claimed.attempts, claimed.created_at, claimed.first);
        let board = Board::new(claimed.images, &self.command.image_descriptions, self.min_success_rate());
        let tally = board.tally();
        info!(total = tally.total, completed = tally.completed, attempts, first, "working on a job");
        if first {
            self.announce(&Event::started(&self.context(), tally.total)).await;
        }
        if let Some(error) = self.over_budget(&board) {
            return self.end(&board, created_at, Some(error)).await;
        }
        let all_begun = self.make_images(&board).await?;
        let tries_left = attempts + 1 < self.workshop.jobs.max_attempts.get();
        let tally = board.tally();
        if !all_begun && tally.reachable(self.min_success_rate()) {
            // A try that we cut off ourselves has not failed, and does not count.
            return Ok(Verdict::Interrupted);
        }
        match decide(&tally, self.min_success_rate(), board.fatal(), tries_left) {
            Decision::Complete => self.end(&board, created_at, None).await,
            Decision::Fail(code) => {
                let error = JobError { code, message: self.why(code, &board) };
                self.end(&board, created_at, Some(error)).await
            }
            Decision::TryAgain => {
                self.workshop.store.count_attempt(self.command.job_id).await?;
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

    /// Makes what is missing, a bounded number at once. No image is begun that cannot help the job any more. `false` where some were
    /// not begun because we were told to stop.
    async fn make_images(&self, board: &Board) -> Result<bool, JobRunError> {
        let asked = self.command.config.max_concurrent.map_or(usize::MAX, usize::from);
        let at_once = asked.min(self.workshop.max_concurrent.get());
        let mut images = stream::iter(board.missing())
            .map(|index| async move {
                if !board.is_worth_trying() {
                    return Ok(true);
                }
                if self.stop.is_cancelled() {
                    return Ok(false);
                }
                self.make_image(board, index).await.map(|()| true)
            })
            .buffer_unordered(at_once);
        let mut all_begun = Ok(true);
        while let Some(begun) = images.next().await {
            // The first failure of our own stops new images; those in flight still come to their end.
            if begun.is_err() {
                board.give_up();
            }
            all_begun = all_begun.and_then(|all| begun.map(|this| all && this));
        }
        all_begun
    }

    /// Ends the job: outcome and terminal event are stored together.
    async fn end(
        &self,
        board: &Board,
        created_at: OffsetDateTime,
        error: Option<JobError>,
    ) -> Result<Verdict, JobRunError> {
        board.mark_not_attempted();
        let context = self.context();
        let cost_usd = f64::from(board.charged()) * self.workshop.cost_per_image_usd;
        let duration_ms = u64::try_from((context.time - created_at).whole_milliseconds()).unwrap_or_default();
        let images = board.images();
        let states: Vec<ImageState> = images.iter().map(|(_, state)| state.clone()).collect();
        let event = Event::terminal(&context, &states, Totals { cost_usd, duration_ms }, error.as_ref());
        let ending = Ending { key: context.key, images: &images, error: error.as_ref(), cost_usd, event: &event };
        if !self.workshop.store.finish(&ending).await? {
            // Somebody else ended it meanwhile: theirs is the one terminal event.
            if let Claim::Finished(terminal) = self.workshop.store.claim(self.command, self.trace).await? {
                return Ok(Verdict::Ended(terminal));
            }
        }
        let tally = board.tally();
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
        Ok(Verdict::Ended(TerminalEvent { event, published: false }))
    }

    /// Whether a job of which nothing was paid yet would cost more than it may.
    fn over_budget(&self, board: &Board) -> Option<JobError> {
        let limit = self.command.config.max_cost_usd.filter(|_| board.charged() == 0)?;
        let images = board.missing().len();
        let cost = f64::from(u32::try_from(images).unwrap_or(u32::MAX)) * self.workshop.cost_per_image_usd;
        (cost > limit + 1e-9).then(|| JobError {
            code: JobFailureCode::BudgetExceeded,
            message: format!("{images} images cost about USD {cost:.2}, and max_cost_usd is {limit:.2}"),
        })
    }

    fn why(&self, code: JobFailureCode, board: &Board) -> String {
        let tally = board.tally();
        let rate = format!(
            "{} of {} images were made; min_success_rate is {}",
            tally.completed,
            tally.total,
            self.min_success_rate()
        );
        match board.fatal_message() {
            Some(message) if board.fatal() == Some(code) => format!("{message}; {rate}"),
            _ => rate,
        }
    }

    fn min_success_rate(&self) -> f64 {
        self.command.config.min_success_rate()
    }

    fn context(&self) -> Context {
        Context { key: self.command.key(), trace_parent: self.trace.cloned(), time: OffsetDateTime::now_utc() }
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
