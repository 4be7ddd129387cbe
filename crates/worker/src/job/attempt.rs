//! One attempt at a job: checks, plan, and the loop over its images.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::Arc;

use domain::asset_path;
use domain::command::{CacheMode, Command};
use domain::event::Event;
use domain::failure::ImageFailureCode;
use domain::outcome::{Asset, ImageFailure, ImageState};
use domain::recipe::Recipe;
use domain::style::Style;
use store::{ClaimedImage, Lease, StoreError};
use tokio::task::JoinSet;
use tracing::{Instrument, info, warn};
use uuid::Uuid;

use super::events::JobEvents;
use super::outcome::JobRunError;
use super::plan::{self, Plan, PlanFailure, Planner};
use super::progress::JobProgress;
use crate::budget::JobBudget;
use crate::cancel::{CancelReason, CancelToken};
use crate::error_chain::error_chain;
use crate::image::{ImageError, ImageGenerator, ImageParts, ImageReport, ImageTask, image_span};
use crate::retry::retry;
use crate::telemetry::metrics::Stage;
use crate::telemetry::trace;
use crate::translation::Translator;

/// One attempt at a job. Dropping it aborts its image tasks.
pub(super) struct JobAttempt<'a> {
    pub(super) command: &'a Command,
    pub(super) lease: Lease,
    /// No worker has claimed the job before.
    pub(super) first: bool,
    /// What the job's images share.
    pub(super) style: Style,
    pub(super) planner: &'a Planner,
    pub(super) translator: &'a Translator,
    pub(super) parts: &'a ImageParts,
    pub(super) max_concurrent: NonZeroUsize,
    pub(super) budget: Arc<JobBudget>,
    pub(super) generator: Arc<ImageGenerator>,
    pub(super) cancel: CancelToken,
    pub(super) progress: JobProgress,
    pub(super) events: JobEvents<'a>,
    pub(super) tasks: JoinSet<ImageReport>,
    /// A result could not be written although the database was waited for.
    pub(super) database_given_up: bool,
}

impl JobAttempt<'_> {
    /// Makes the missing images, a bounded number at once, and records each. Ends when all have a result, or when the attempt is cancelled and the
    /// images in flight have ended.
    ///
    /// # Errors
    ///
    /// [`JobRunError`]: the first failure of the infrastructure.
    pub(super) async fn execute(&mut self) -> Result<(), JobRunError> {
        if self.first {
            let started = Event::started(&self.events.context(), self.progress.tally().total);
            self.events.publish(&started).await;
        }
        let mut waiting = self.prepare().await?.into_iter();
        let mut first_error = None;
        loop {
            while self.tasks.len() < self.max_concurrent.get()
                && self.may_begin()
                && let Some(task) = waiting.next()
            {
                let span = image_span(task.index);
                self.tasks.spawn(self.generator.clone().run(task).instrument(span));
            }
            let Some(joined) = self.tasks.join_next().await else { break };
            let report = joined.unwrap_or_else(|error| resume_unwind(error.into_panic()));
            if let Err(error) = self.record(report).await {
                if matches!(error, JobRunError::Store(StoreError::LeaseLost)) {
                    return Err(error);
                }
                // No new image is begun; those in flight come to their end.
                self.cancel.cancel(CancelReason::Infrastructure);
                first_error.get_or_insert(error);
            }
            if self.cancel.reason() == Some(&CancelReason::LeaseLost) {
                return Err(StoreError::LeaseLost.into());
            }
        }
        if waiting.next().is_some() {
            self.progress.incomplete = true;
        }
        first_error.map_or(Ok(()), Err)
    }

    /// After a fatal cause no request is sent, but earlier images can still stand in for the images that wait.
    fn may_begin(&self) -> bool {
        match self.cancel.reason() {
            None => true,
            Some(CancelReason::Fatal(..)) => !self.cancel.is_stopping(),
            Some(
                CancelReason::Stopped
                | CancelReason::Preempted
                | CancelReason::Hopeless
                | CancelReason::LeaseLost
                | CancelReason::Infrastructure,
            ) => false,
        }
    }

    /// Checks what can be checked without a request, and plans the images that are still to be made.
    async fn prepare(&mut self) -> Result<Vec<ImageTask>, JobRunError> {
        let prefers_cache = self.command.config.cache == Some(CacheMode::Prefer);
        // Translation costs something too, so that money is checked first where it is known how much is needed.
        if !prefers_cache {
            self.check_funds().await;
        }
        let Plan { mut tasks, failures } = self.plan().await?;
        for (index, failure) in failures {
            let PlanFailure { code, message, retryable } = failure;
            if retryable && self.cancel.is_cancelled() {
                // Its translation was cancelled; it has not failed.
                self.progress.incomplete = true;
            } else {
                self.fail(index, code, message, retryable, None).instrument(image_span(index)).await?;
            }
        }
        if prefers_cache {
            tasks = self.reuse(tasks).await?;
            self.check_funds().await;
        }
        if tasks.is_empty() || self.cancel.is_cancelled() {
            return Ok(tasks);
        }
        self.check_storage(tasks).await
    }

    /// Cancels the attempt where its missing images cannot be paid for.
    async fn check_funds(&mut self) {
        let images = u32::try_from(self.progress.missing().len()).unwrap_or(u32::MAX);
        if images > 0
            && !self.cancel.is_cancelled()
            && let Some((code, message)) = self.budget.find_shortfall(images, &self.parts.client).await
        {
            self.cancel.cancel(CancelReason::Fatal(code, message.clone()));
            self.progress.set_fatal(code, message);
        }
    }

    /// Translates the texts of missing images and composes their prompts.
    async fn plan(&self) -> Result<Plan, StoreError> {
        let missing = self.progress.missing();
        let texts = missing.iter().map(|image| image.description.as_str()).chain(plan::texts(&self.style));
        let translating = self.translator.english(texts, self.cancel.token());
        let english = self.parts.metrics.stage(Stage::Translate, translating).await?;
        Ok(self.planner.plan(self.command, &self.style, &english, &missing))
    }

    /// Takes earlier images for the tasks that have one, and returns the others.
    async fn reuse(&mut self, tasks: Vec<ImageTask>) -> Result<Vec<ImageTask>, JobRunError> {
        let mut left = Vec::new();
        for task in tasks {
            if self.cancel.is_cancelled() {
                left.push(task);
                continue;
            }
            let span = image_span(task.index);
            match self.generator.reuse(&task).instrument(span.clone()).await? {
                Some(asset) => self.complete(asset, task.fingerprint).instrument(span).await?,
                None => left.push(task),
            }
        }
        Ok(left)
    }

    /// Checks that files can be stored now: no picture is paid for that could not be kept. If not, all tasks have failed.
    async fn check_storage(&mut self, tasks: Vec<ImageTask>) -> Result<Vec<ImageTask>, JobRunError> {
        // Named after the job, so that its next attempt removes what a kill leaves behind.
        let path = format!("{}/.check-{}", asset_path::folder(self.command.project_id), self.command.job_id);
        let Err(error) = self.parts.storage.check_at(&path).await else { return Ok(tasks) };
        for task in tasks {
            let (code, message) = (ImageFailureCode::Storage, error_chain(&error));
            let failing = self.fail(task.index, code, message, code.may_pass(), Some(&task.recipe));
            failing.instrument(image_span(task.index)).await?;
        }
        Ok(Vec::new())
    }

    /// Records what became of an image, first its cost and then its result; then cancels the attempt where the success rate cannot be reached any more.
    async fn record(&mut self, report: ImageReport) -> Result<(), JobRunError> {
        let ImageReport { task, span, result, usage } = report;
        self.progress.add_usage(task.index, usage);
        match result {
            Ok(asset) => self.complete(asset, task.fingerprint).instrument(span).await,
            Err(ImageError::Failed(code, message)) => {
                self.fail(task.index, code, message, code.may_pass(), Some(&task.recipe)).instrument(span).await
            }
            Err(ImageError::Fatal(code, message)) => {
                self.progress.set_fatal(code, message);
                self.progress.incomplete = true;
                Ok(())
            }
            Err(ImageError::Cancelled) => {
                self.progress.incomplete = true;
                Ok(())
            }
            Err(ImageError::Store(error)) => Err(error.into()),
            Err(ImageError::Budget(source)) => Err(JobRunError::Budget(source)),
        }
    }

    /// Completes the row of an image whose file is stored.
    async fn complete(&mut self, asset: Asset, fingerprint: Uuid) -> Result<(), JobRunError> {
        let ImageParts { store, metrics, .. } = self.parts;
        let index = asset.index;
        let lease = self.lease;
        let completing = self.write(|| store.complete_image(lease, &asset, fingerprint));
        metrics.stage(Stage::Row, completing).await?;
        metrics.image_completed(asset.origin);
        let requests = self.progress.image(index).requests;
        trace::note("image.origin", asset.origin.as_str());
        trace::note("image.size_bytes", i64::try_from(asset.size_bytes).unwrap_or(i64::MAX));
        trace::note("image.requests", i64::from(requests));
        info!(
            file_path = asset.file_path,
            size_bytes = asset.size_bytes,
            origin = asset.origin.as_str(),
            requests,
            "image completed"
        );
        self.progress.set_state(index, ImageState::Completed(Box::new(asset)));
        self.publish_progress(index, None).await;
        Ok(())
    }

    /// Records the failure of an image.
    async fn fail(
        &mut self,
        index: u32,
        code: ImageFailureCode,
        message: String,
        retryable: bool,
        recipe: Option<&Recipe>,
    ) -> Result<(), JobRunError> {
        let ImageParts { store, metrics, .. } = self.parts;
        let ClaimedImage { id, description, requests: attempts, .. } = self.progress.image(index);
        let (id, description, attempts) = (*id, description.clone(), *attempts);
        metrics.image_failed(code);
        trace::note("image.requests", i64::from(attempts));
        trace::failed(code.as_str(), &message);
        let beginning: String = description.chars().take(50).collect();
        warn!(code = code.as_str(), reason = message, requests = attempts, description = beginning, "image failed");
        let failure = ImageFailure { index, description, code, message, attempts, may_pass: retryable };
        let lease = self.lease;
        self.write(|| store.fail_image(lease, id, &failure, recipe)).await?;
        self.progress.set_state(index, ImageState::Failed(failure));
        if !self.progress.is_reachable() {
            self.cancel.cancel(CancelReason::Hopeless);
        }
        if !retryable {
            self.publish_progress(index, Some(code)).await;
        }
        Ok(())
    }

    /// Writes the result of an image, which may have been paid for: an unavailable database is waited for. After one such wait has failed, later results are
    /// tried once each, so that the waits do not add up.
    async fn write<F>(&mut self, operation: impl Fn() -> F + Send) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        if self.database_given_up {
            return operation().await;
        }
        let written = retry(operation).await;
        self.database_given_up = written.is_err();
        written
    }

    async fn publish_progress(&mut self, index: u32, failure: Option<ImageFailureCode>) {
        self.progress.mark_announced(index);
        let event = Event::progress(&self.events.context(), index, failure, &self.progress.tally());
        self.events.publish(&event).await;
    }
}
