//! A job, from its claim to its end. Knows no broker: `run` and `generate` both come through here.

mod board;
mod cache;
mod make;
mod money;
mod plan;
mod running;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domain::command::Command;
use domain::event::{Context, Event, JobError, Totals};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{Decision, ImageState, decide};
use domain::style::Style;
use domain::trace::TraceParent;
use futures_util::{StreamExt, stream};
use picture::Glance;
use stability_client::Client;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::event_sink::EventSink;
use crate::finisher::Finisher;
use crate::settings::{JobSettings, Settings};
use crate::storage::Storage;
use crate::store::{Claim, Claimed, Ending, Store, StoreError, TerminalEvent};
use crate::translation::Translator;
use board::Board;
use money::Prices;
use plan::{Plan, Planner};
use running::Running;

/// What is asked of the API, by index.
type Plans = BTreeMap<u32, Plan>;

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
    /// Retries of a request.
    retries: usize,
    prices: Prices,
    translator: Translator,
    running: Running,
}

impl Workshop {
    /// Brings the parts together.
    pub fn new(settings: &Settings, store: Store, storage: Storage, client: Client, translator: Translator) -> Self {
        let glance = Glance { min_sharpness: settings.min_sharpness };
        Self {
            store,
            storage,
            client,
            finisher: Finisher::new(settings.image, glance),
            planner: Arc::new(Planner::new(settings)),
            jobs: settings.jobs.clone(),
            max_concurrent: settings.stability.max_concurrent,
            retries: settings.stability.retry_delays.len(),
            prices: Prices::new(settings),
            translator,
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
        let Claimed { first, attempts, created_at, style, images } = claimed;
        let board = Board::new(images, &self.command.image_descriptions, self.min_success_rate(), self.stop);
        let tally = board.tally();
        info!(total = tally.total, completed = tally.completed, attempts, first, "working on a job");
        if first {
            self.announce(&Event::started(&self.context(), tally.total)).await;
        }
        let mut plans = self.plan(&board, &style).await?;
        self.take_preferred(&board, &mut plans).await?;
        match self.too_dear(&board, u32::try_from(plans.len()).unwrap_or(u32::MAX)).await {
            Some((code, message)) => board.set_fatal(code, message),
            None => self.make_images(&board, &plans).await?,
        }
        self.fill_from_cache(&board, &plans).await?;
        let tries_left = attempts + 1 < self.workshop.jobs.max_attempts.get();
        let tally = board.tally();
        if self.stop.is_cancelled() && board.was_cut_off() && tally.reachable(self.min_success_rate()) {
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

    /// Puts the texts of what is missing into English and composes their prompts. What cannot be asked for has failed then.
    async fn plan(&self, board: &Board, style: &Style) -> Result<Plans, JobRunError> {
        let missing = board.missing();
        let descriptions: Vec<String> = missing.iter().map(|index| board.slot(*index).description).collect();
        let texts = descriptions.iter().map(String::as_str).chain(plan::texts(style));
        let english = self.workshop.translator.english(texts, self.stop).await?;
        let mut plans = Plans::new();
        for (index, description) in missing.into_iter().zip(&descriptions) {
            match self.workshop.planner.plan(self.command, style, &english, index, description) {
                Ok(plan) => {
                    if !plan.recipe.left_out.is_empty() {
                        warn!(index, left_out = plan.recipe.left_out.join(", "), "the prompt was shortened");
                    }
                    plans.insert(index, plan);
                }
                // What was cut off while it was translated has not failed.
                Err(unplannable) if unplannable.may_pass && self.stop.is_cancelled() => board.cut_off(),
                Err(unplannable) => self.fail_unplannable(board, index, unplannable).await?,
            }
        }
        Ok(plans)
    }

    /// Makes what is planned, in order, a bounded number at once. No image is begun that cannot help the job any more.
    async fn make_images(&self, board: &Board, plans: &Plans) -> Result<(), JobRunError> {
        let asked = self.command.config.max_concurrent.map_or(usize::MAX, usize::from);
        let at_once = asked.min(self.workshop.max_concurrent.get());
        let mut images = stream::iter(plans.keys().copied())
            .map(|index| async move {
                if board.halt().is_cancelled() {
                    board.cut_off();
                    return Ok(());
                }
                self.make_image(board, index, &plans[&index]).await
            })
            .buffer_unordered(at_once);
        let mut made = Ok(());
        while let Some(image) = images.next().await {
            // The first failure of our own stops new images; those in flight still come to their end.
            if image.is_err() {
                board.give_up();
            }
            made = made.and(image);
        }
        made
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
        let cost_usd = self.workshop.prices.of(board.charged());
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

    fn why(&self, code: JobFailureCode, board: &Board) -> String {
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
