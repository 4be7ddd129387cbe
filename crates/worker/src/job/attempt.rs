//! One attempt at a job: checks, plan, and the loop over its images.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::Arc;

use domain::asset_path;
use domain::command::{CacheMode, Command};
use domain::event::Event;
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::generation_params::GenerationParams;
use domain::outcome::{Asset, ImageFailure, ImageState};
use domain::retry::RetryOrigin;
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
use crate::image::{ImageError, ImageGenerator, ImageReport, ImageResources, ImageTask, image_span};
use crate::outage::retry_store;
use crate::telemetry::metrics::Stage;
use crate::telemetry::trace;
use crate::translation::Translator;

/// One attempt at a job. Dropping it aborts its image tasks.
pub(super) struct JobAttempt<'a> {
    pub(super) command: &'a Command,
    pub(super) lease: Lease,
    /// Whether this is the first claim of the job.
    pub(super) is_first_claim: bool,
    /// Where its images come from, if it makes images of another job again.
    pub(super) origin: Option<RetryOrigin>,
    /// Style shared by all images of the job.
    pub(super) style: Style,
    /// The name of the engine of all images.
    pub(super) engine: String,
    pub(super) planner: &'a Planner,
    pub(super) translator: &'a Translator,
    pub(super) resources: &'a ImageResources,
    pub(super) max_concurrent: NonZeroUsize,
    pub(super) budget: Arc<JobBudget>,
    pub(super) generator: Arc<ImageGenerator>,
    pub(super) cancel: CancelToken,
    pub(super) progress: JobProgress,
    pub(super) events: JobEvents<'a>,
    pub(super) tasks: JoinSet<ImageReport>,
    /// Whether the job ends after this attempt.
    pub(super) is_last_attempt: bool,
    /// A result could not be written, even with retries: the database is unavailable.
    pub(super) database_unavailable: bool,
    /// How many workers the job has lost since it last completed an image.
    pub(super) lease_losses: u32,
}

impl JobAttempt<'_> {
    /// Makes the missing images with bounded concurrency and records each result.
    ///
    /// Returns when all images have a result, or when the attempt is cancelled and the images in flight have ended.
    ///
    /// # Errors
    ///
    /// [`JobRunError`]: a lost lease at once; otherwise the first failure, after the images in flight have ended.
    pub(super) async fn execute(&mut self) -> Result<(), JobRunError> {
        if self.is_first_claim {
            let started = Event::started(&self.events.context(), self.progress.tally().total);
            self.events.publish(&started).await;
        }
        let mut waiting = self.prepare().await?.into_iter();
        let mut first_error = None;
        loop {
            while self.tasks.len() < self.max_concurrent.get()
                && self.can_start_image()
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
                // No new image is started; those in flight finish.
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

    /// Completes the rows of images whose files an earlier attempt has stored. Sends no request.
    pub(super) async fn adopt_stored_files(&mut self) -> Result<(), JobRunError> {
        let stored: Vec<(Uuid, u32, String, String)> = self
            .progress
            .missing_images()
            .into_iter()
            .filter_map(|image| Some((image.id, image.index, image.description.clone(), image.file_path.clone()?)))
            .collect();
        for (id, index, description, path) in stored {
            let span = image_span(index);
            let adopting = self.generator.adopt_any(id, index, &description, &path).instrument(span.clone());
            match adopting.await {
                Ok(Some(asset)) => self.complete_image(asset).instrument(span).await?,
                Ok(None) => {}
                Err(error) => warn!(error = error_chain(&error), path, "stored file of an image cannot be read"),
            }
        }
        Ok(())
    }

    /// Whether another image can be started: after a fatal cause no request is sent, but a cached image can be used.
    fn can_start_image(&self) -> bool {
        match self.cancel.reason() {
            None => true,
            Some(CancelReason::Fatal(..)) => !self.cancel.is_stopping(),
            Some(
                CancelReason::Stopped
                | CancelReason::Preempted
                | CancelReason::GateClosed
                | CancelReason::GateOpened
                | CancelReason::KeyReplaced
                | CancelReason::DailyBudget
                | CancelReason::SuccessRateUnreachable
                | CancelReason::LeaseLost
                | CancelReason::Infrastructure
                | CancelReason::JobOver(_),
            ) => false,
        }
    }

    /// Checks funds and storage before the first request, and plans the missing images.
    async fn prepare(&mut self) -> Result<Vec<ImageTask>, JobRunError> {
        self.check_upscaler();
        let prefers_cache = self.command.config.cache == Some(CacheMode::Prefer);
        // Translation costs money too. Funds are checked first, unless cached images may reduce the number of requests.
        if !prefers_cache {
            self.check_funds().await;
        }
        let Plan { mut tasks, failures } = self.plan().await?;
        for (index, failure) in failures {
            let PlanFailure { code, message, retryable } = failure;
            if retryable && self.cancel.is_cancelled() {
                // The translation was cancelled; the image has not failed.
                self.progress.incomplete = true;
            } else {
                self.fail_image(index, code, message, retryable, None).instrument(image_span(index)).await?;
            }
        }
        if prefers_cache {
            tasks = self.reuse_cached(tasks).await?;
            self.check_funds().await;
        }
        if tasks.is_empty() || self.cancel.is_cancelled() {
            return Ok(tasks);
        }
        self.check_storage(tasks).await
    }

    /// Cancels the attempt if the upscaler does not take the images of the engine.
    fn check_upscaler(&mut self) {
        if let Some(message) = plan::upscaler_conflict(self.command, &self.engine) {
            self.cancel.cancel(CancelReason::Fatal(JobFailureCode::InvalidRequest, message.clone()));
            self.progress.set_fatal_cause(JobFailureCode::InvalidRequest, message);
        }
    }

    /// Cancels the attempt if its missing images cannot be paid for.
    async fn check_funds(&mut self) {
        let images = u32::try_from(self.progress.missing_images().len()).unwrap_or(u32::MAX);
        if images > 0
            && !self.cancel.is_cancelled()
            && let Some((code, message)) = self.budget.find_shortfall(images, &self.resources.client).await
        {
            self.cancel.cancel(CancelReason::Fatal(code, message.clone()));
            self.progress.set_fatal_cause(code, message);
        }
    }

    /// Translates the texts of missing images and composes their prompts.
    async fn plan(&self) -> Result<Plan, StoreError> {
        let missing = self.progress.missing_images();
        let texts = missing.iter().map(|image| image.description.as_str()).chain(plan::style_texts(&self.style));
        let translating = self.translator.translate(texts, self.cancel.token());
        let english = self.resources.metrics.run_stage(Stage::Translate, translating).await?;
        Ok(self.planner.plan(self.command, &self.engine, &self.style, &english, &missing))
    }

    /// Completes the tasks that have a cached image; returns the remaining tasks.
    async fn reuse_cached(&mut self, tasks: Vec<ImageTask>) -> Result<Vec<ImageTask>, JobRunError> {
        let mut remaining = Vec::new();
        for task in tasks {
            if self.cancel.is_cancelled() {
                remaining.push(task);
                continue;
            }
            let span = image_span(task.index);
            match self.generator.reuse_cached(&task).instrument(span.clone()).await? {
                Some(asset) => self.complete_image(asset).instrument(span).await?,
                None => remaining.push(task),
            }
        }
        Ok(remaining)
    }

    /// Checks that files can be stored, before any request may be charged. If they cannot, starts no task; in the last
    /// attempt, fails all of them.
    async fn check_storage(&mut self, tasks: Vec<ImageTask>) -> Result<Vec<ImageTask>, JobRunError> {
        // Named after the job, so that its next attempt removes a file that a killed process left behind.
        let path = format!("{}/.check-{}", asset_path::project_dir(self.command.project_id), self.command.job_id);
        let Err(error) = self.resources.storage.check_writable_at(&path).await else { return Ok(tasks) };
        if !self.is_last_attempt {
            warn!(error = error_chain(&error), "storage unavailable; no image is started in this attempt");
            self.progress.storage_unavailable = true;
            return Ok(Vec::new());
        }
        for task in tasks {
            let (code, message) = (ImageFailureCode::Storage, error_chain(&error));
            let failing = self.fail_image(task.index, code, message, code.is_retryable(), Some(&task.params));
            failing.instrument(image_span(task.index)).await?;
        }
        Ok(Vec::new())
    }

    /// Records the usage of an image, then its result.
    async fn record(&mut self, report: ImageReport) -> Result<(), JobRunError> {
        let ImageReport { task, span, result, usage } = report;
        self.progress.add_usage(task.index, usage);
        match result {
            Ok(asset) => self.complete_image(asset).instrument(span).await,
            Err(ImageError::Failed(code, message)) => {
                self.fail_image(task.index, code, message, code.is_retryable(), Some(&task.params))
                    .instrument(span)
                    .await
            }
            Err(ImageError::Fatal(code, message) | ImageError::Refused(code, message)) => {
                self.progress.set_fatal_cause(code, message);
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

    /// Records the completion of an image whose file is stored.
    async fn complete_image(&mut self, asset: Asset) -> Result<(), JobRunError> {
        let ImageResources { store, metrics, pool, .. } = self.resources;
        // Not the task's: the image may have been made without the upscaler that was asked for.
        let fingerprint = asset.params.fingerprint(&pool.spec());
        let index = asset.index;
        let lease = self.lease;
        let completing = self.write_result(|| store.complete_image(lease, &asset, fingerprint));
        metrics.run_stage(Stage::Record, completing).await?;
        if self.lease_losses > 0 {
            // The job does not crash every worker.
            self.write_result(|| store.clear_lease_losses(lease)).await?;
            self.lease_losses = 0;
        }
        metrics.record_image_completed(asset.origin);
        let requests = self.progress.image(index).requests;
        trace::set_attribute("image.origin", asset.origin.as_str());
        trace::set_attribute("image.size_bytes", i64::try_from(asset.size_bytes).unwrap_or(i64::MAX));
        trace::set_attribute("image.requests", i64::from(requests));
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

    /// Records the failure of an image; cancels the attempt if the success rate can no longer be reached.
    async fn fail_image(
        &mut self,
        index: u32,
        code: ImageFailureCode,
        message: String,
        retryable: bool,
        params: Option<&GenerationParams>,
    ) -> Result<(), JobRunError> {
        let ImageResources { store, metrics, .. } = self.resources;
        let ClaimedImage { id, description, requests: attempts, .. } = self.progress.image(index);
        let (id, description, attempts) = (*id, description.clone(), *attempts);
        metrics.record_image_failed(code);
        trace::set_attribute("image.requests", i64::from(attempts));
        trace::set_error(code.as_str(), &message);
        let excerpt: String = description.chars().take(50).collect();
        warn!(code = code.as_str(), reason = message, requests = attempts, description = excerpt, "image failed");
        let failure = ImageFailure { index, description, code, message, attempts, retryable };
        let lease = self.lease;
        self.write_result(|| store.fail_image(lease, id, &failure, params)).await?;
        self.progress.set_state(index, ImageState::Failed(failure));
        if !self.progress.can_reach_success_rate() {
            self.cancel.cancel(CancelReason::SuccessRateUnreachable);
        }
        if !retryable {
            self.publish_progress(index, Some(code)).await;
        }
        Ok(())
    }

    /// Writes the result of an image, with retries while the database is unavailable: the image may have been paid for.
    ///
    /// After one write has failed despite its retries, later writes are tried once each, so that waits do not add up.
    async fn write_result<F>(&mut self, operation: impl Fn() -> F + Send) -> Result<(), StoreError>
    where
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        if self.database_unavailable {
            return operation().await;
        }
        let result = retry_store(operation).await;
        self.database_unavailable = result.is_err();
        result
    }

    async fn publish_progress(&mut self, index: u32, failure: Option<ImageFailureCode>) {
        self.progress.mark_announced(index);
        let event = Event::progress(&self.events.context(), index, failure, &self.progress.tally());
        self.events.publish(&event).await;
    }
}
