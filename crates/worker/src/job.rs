//! A job, from its claim to its end. Knows no broker: `run` and `generate` both come through here.

mod board;
mod cache;
mod make;
mod money;
mod patience;
mod plan;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use domain::asset_path;
use domain::command::Command;
use domain::event::{Context, Event, JobError, Totals};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{Decision, ImageState, decide};
use domain::recipe::Recipe;
use domain::style::Style;
use domain::trace::TraceParent;
use futures_util::{StreamExt, stream};
use picture::Glance;
use stability_client::Client;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::causes;
use crate::event_sink::EventSink;
use crate::finisher::Finisher;
use crate::pause;
use crate::settings::{JobSettings, Settings};
use crate::storage::Storage;
use crate::store::{Claim, ClaimTerms, Claimed, Ending, Lease, Store, StoreError, TerminalEvent};
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

/// What a run of a job came to.
#[derive(Debug)]
pub enum Verdict {
    /// It has ended, now or before; its terminal event is stored.
    Ended(TerminalEvent),
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
            usual_style: Arc::new(Style {
                cfg_scale: Some(settings.cfg_scale),
                steps: Some(settings.steps),
                ..Style::default()
            }),
            translator,
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
        pause::point("before the claim").await;
        let terms = ClaimTerms { lease: self.jobs.lease, usual_style: &self.usual_style };
        let claimed = match self.store.claim(command, trace, terms).await? {
            Claim::Run(claimed) => claimed,
            Claim::Held => return Ok(Verdict::Held),
            Claim::Finished(terminal) => return Ok(Verdict::Ended(terminal)),
            Claim::Conflict => return Ok(Verdict::Conflict),
        };
        pause::point("after the claim").await;
        let lease = claimed.lease;
        let slice = stop.child_token();
        let unheard = AtomicBool::new(false);
        let done = CancellationToken::new();
        let run = Run { workshop: self, command, trace, sink, stop, slice: &slice, done: &done, lease, unheard };
        let verdict = tokio::select! {
            verdict = run.to_verdict(claimed) => verdict,
            () = self.hold(lease, &done) => Err(StoreError::LeaseLost.into()),
            () = end_slice(&slice, self.jobs.slice) => Ok(Verdict::Yielded),
        };
        match verdict {
            Err(JobRunError::Store(StoreError::LeaseLost)) => {
                warn!("the job's lease was lost; nothing more is done for it");
                Ok(Verdict::LeaseLost)
            }
            Err(error) => {
                // So that the job need not wait for the lease to run out; where this fails it does.
                let _ = self.store.put_down(lease, false).await;
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
    trace: Option<&'a TraceParent>,
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
        let Claimed { lease: _, losses, first, attempts, created_at, style, images } = claimed;
        let board = Board::new(images, &self.command.image_descriptions, self.min_success_rate(), self.slice);
        let tally = board.tally();
        let ended_before = tally.completed + tally.failed_for_good;
        info!(total = tally.total, completed = tally.completed, attempts, first, "working on a job");
        if first {
            self.announce(&Event::started(&self.context(), tally.total)).await;
        }
        if losses >= MAX_LOSSES {
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

    /// Plans what is missing and makes it, unless it would cost too much or could not be stored.
    async fn begun(&self, board: &Board, style: &Style) -> Result<Plans, JobRunError> {
        // Translation may cost something too, so that money is looked at first where it is known how much is needed.
        if !self.prefers_cache()
            && let Some((code, message)) = self.too_dear(board).await
        {
            board.set_fatal(code, message);
        }
        let mut plans = self.plan(board, style).await?;
        self.take_preferred(board, &mut plans).await?;
        if self.prefers_cache()
            && let Some((code, message)) = self.too_dear(board).await
        {
            board.set_fatal(code, message);
        }
        if !plans.is_empty() && !board.halt().is_cancelled() && self.can_store(board, &plans).await? {
            self.make_images(board, &plans).await?;
        }
        Ok(plans)
    }

    /// Whether files can be stored at this moment: no picture is paid for that could not be kept. Where not, its images have failed so.
    async fn can_store(&self, board: &Board, plans: &Plans) -> Result<bool, JobRunError> {
        // Named after the job, so that what a kill leaves behind goes with its next try.
        let path = format!("{}/.check-{}", asset_path::folder(self.command.project_id), self.command.job_id);
        let Err(error) = self.workshop.storage.check_at(&path).await else { return Ok(true) };
        for (index, plan) in plans {
            let (code, message) = (ImageFailureCode::Storage, causes::joined(&error));
            self.fail(board, *index, code, message, code.may_pass(), Some(&plan.recipe)).await?;
        }
        Ok(false)
    }

    /// Puts the texts of what is missing into English and composes their prompts. What cannot be asked for has failed then.
    async fn plan(&self, board: &Board, style: &Style) -> Result<Plans, JobRunError> {
        let missing = board.missing();
        let descriptions: Vec<String> = missing.iter().map(|index| board.slot(*index).description).collect();
        let texts = descriptions.iter().map(String::as_str).chain(plan::texts(style));
        let english = self.workshop.translator.english(texts, board.halt()).await?;
        let mut plans = Plans::new();
        for (index, description) in missing.into_iter().zip(&descriptions) {
            match self.workshop.planner.plan(self.command, style, &english, index, description) {
                Ok(plan) => {
                    let Recipe { left_out, negative_left_out, .. } = &plan.recipe;
                    if !left_out.is_empty() || !negative_left_out.is_empty() {
                        let (left_out, negative_left_out) = (left_out.join(", "), negative_left_out.join(", "));
                        warn!(index, left_out, negative_left_out, "the prompt was shortened");
                    }
                    plans.insert(index, plan);
                }
                // What was cut off while it was translated has not failed.
                Err(unplannable) if unplannable.may_pass && board.halt().is_cancelled() => board.cut_off(),
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
        let ending = Ending { lease: self.lease, images: &images, error: error.as_ref(), cost_usd, event: &event };
        self.done.cancel();
        self.workshop.patiently(|| self.workshop.store.finish(&ending)).await?;
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
        let exhausted = error.is_some_and(|error| error.code == JobFailureCode::AttemptsExhausted);
        Ok(Verdict::Ended(TerminalEvent { event, published: false, exhausted }))
    }

    /// Puts the job down for whoever comes next; `attempt` counts this try.
    async fn put_down(&self, attempt: bool) -> Result<(), JobRunError> {
        self.done.cancel();
        Ok(self.workshop.store.put_down(self.lease, attempt).await?)
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
