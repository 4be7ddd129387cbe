//! Makes one image: adopts a stored file, generates a new image, or falls back to a cached one.
//!
//! Independent of the job's progress: it reports the result of an image, and the attempt records it.

mod adopt;
mod cache;
mod error;
mod file;
mod task;
mod upscale;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::command::{CacheMode, Command};
use domain::generation_params::GenerationParams;
use domain::image_metadata::ImageMetadata;
use domain::image_spec::ImageDefect;
use domain::outcome::{Asset, Origin};
use domain::upscaler::Upscaler;
use picture::{ProcessedImage, metadata};
use stability_client::{
    CallOptions, Client, Error, GenerateError, GeneratedImage, Generation, Tenant, UnusableImage, Usage,
};
use store::{KeyHash, Lease, Store, StoreError};
use tracing::{Span, info, info_span, warn};
use uuid::Uuid;

use crate::budget::JobBudget;
use crate::cancel::{CancelReason, CancelToken};
use crate::failpoint;
use crate::gate::AccountGate;
use crate::image_pool::ImagePool;
use crate::outage::UnstoredImages;
use crate::storage::Storage;
use crate::telemetry::metrics::{ErrorCode, Metrics, Stage};
use adopt::{find_adoptable_file, read_own_file};
use cache::copy_cached;
use file::{ImageFiles, StoredFile};

pub(crate) use cache::has_cached;
pub(crate) use error::ImageError;
pub(crate) use task::{ImageReport, ImageTask};

/// Request turns of an urgent job for each turn of another job.
const URGENT_WEIGHT: NonZeroU32 = NonZeroU32::new(2).expect("2 is not zero");

/// The services that every image needs.
#[derive(Clone)]
pub(crate) struct ImageResources {
    pub(crate) client: Client,
    pub(crate) pool: ImagePool,
    pub(crate) storage: Storage,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) unstored: UnstoredImages,
    /// How long a lease lasts after each renewal.
    pub(crate) lease_duration: Duration,
}

/// Makes the images of one attempt at a job, under its lease.
pub(crate) struct ImageGenerator {
    client: Client,
    files: ImageFiles,
    metrics: Metrics,
    unstored: UnstoredImages,
    gate: AccountGate,
    budget: Arc<JobBudget>,
    cancel: CancelToken,
    cache_mode: CacheMode,
    tenant: Tenant,
}

/// A generated image that was processed.
struct ProcessedGeneration {
    processed: ProcessedImage,
    /// The image as the API sent it, if it is to be upscaled.
    original: Option<Bytes>,
    seed: u32,
    usage: Usage,
}

/// Creates the span of one image, as a child of the current span.
pub(crate) fn image_span(index: u32) -> Span {
    info_span!("image", image.index = index)
}

impl ImageGenerator {
    /// Creates a generator for one attempt. An `urgent` job gets two request turns for each turn of another job.
    pub(crate) fn new(
        parts: &ImageResources,
        gate: &AccountGate,
        command: &Command,
        urgent: bool,
        lease: Lease,
        budget: Arc<JobBudget>,
        cancel: CancelToken,
    ) -> Self {
        let ImageResources { client, pool, storage, store, metrics, unstored, lease_duration } = parts.clone();
        let weight = if urgent { URGENT_WEIGHT } else { NonZeroU32::MIN };
        Self {
            client,
            files: ImageFiles { store, storage, pool, key: command.key(), lease, lease_duration },
            metrics,
            unstored,
            gate: gate.clone(),
            budget,
            cancel,
            cache_mode: command.config.cache.unwrap_or_default(),
            tenant: Tenant { id: command.job_id.as_u128(), weight },
        }
    }

    /// Adopts, generates or copies one image. Must run inside the image's span.
    ///
    /// A failure that would affect other images too cancels the attempt. A cancelled attempt sends no further request;
    /// after a fatal cause, a cached image can still be used.
    pub(crate) async fn run(self: Arc<Self>, task: ImageTask) -> ImageReport {
        let mut usage = Usage::default();
        let result = match find_adoptable_file(&self.files, &task).await {
            Ok(Some(stored)) => Ok(self.build_asset(&task, stored)),
            Ok(None) => self.generate(&task, &mut usage).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(asset) => Ok(asset),
            Err(error) => {
                self.cancel_attempt(&error);
                self.fall_back_to_cache(&task, error).await
            }
        };
        ImageReport { task, span: Span::current(), result, usage }
    }

    /// Adopts the stored file of an image of this job, whatever the parameters it was made with.
    pub(crate) async fn adopt_any(
        &self,
        id: Uuid,
        index: u32,
        description: &str,
        path: &str,
    ) -> Result<Option<Asset>, ImageError> {
        let stored = read_own_file(&self.files, index, path).await?;
        Ok(stored.map(|stored| self.describe(id, index, description, stored)))
    }

    /// Generates a new image and stores it under its own path.
    async fn generate(&self, task: &ImageTask, usage: &mut Usage) -> Result<Asset, ImageError> {
        if self.cancel.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let budget = self.budget.for_generation(task.id);
        // An image that is to be upscaled is stored first: it was paid for.
        let params = task.params.without_upscaler();
        let accept = |generated| self.process_picture(task, &params, generated);
        let key = self.gate.key();
        let options = CallOptions::default().stop(self.cancel.token().clone()).budget(&budget).tenant(self.tenant);
        let generated = self.client.generate_with(&task.request, &options, accept).await;
        let ProcessedGeneration { processed, original, seed, usage: used } = match generated {
            Ok(generated) => generated,
            Err(GenerateError { error, usage: used, .. }) => {
                *usage = used;
                if matches!(error, Error::Filtered | Error::Damaged { .. }) {
                    self.gate.record_success(self.files.key.job_id).await;
                }
                return Err(self.close_gate_if_refused(&key, ImageError::from(error)).await);
            }
        };
        *usage = used;
        failpoint::reach("before_file").await;
        let ProcessedImage { bytes, format, sha256 } = processed;
        let size_bytes = bytes.len() as u64;
        let unstored = self.unstored.add(size_bytes);
        let file_path = self.files.reserve_path(task, format).await?;
        self.metrics.run_stage(Stage::Store, self.files.write(&file_path, bytes)).await?;
        drop(unstored);
        let origin = Origin::Generated;
        let stored = StoredFile { file_path, format, size_bytes, sha256, seed, origin, params };
        let stored = match original {
            Some(original) => self.upscale(task, &original, stored, usage).await?,
            None => stored,
        };
        failpoint::reach("before_row").await;
        Ok(self.build_asset(task, stored))
    }

    /// Closes the account gate if the API refused the account. Returns the refusal for the job whose request closed the
    /// gate; for another one, the image has not failed.
    async fn close_gate_if_refused(&self, key: &KeyHash, error: ImageError) -> ImageError {
        let ImageError::Refused(code, message) = &error else { return error };
        if self.gate.is_replaced(key).await {
            info!(code = error.code(), "the API refused a replaced key; the job continues with the new one");
            self.cancel.cancel(CancelReason::KeyReplaced);
            return ImageError::Cancelled;
        }
        match self.gate.record_refusal(key, self.files.key.job_id, *code, message).await {
            Ok(true) => error,
            Ok(false) => {
                self.cancel.cancel(CancelReason::GateClosed);
                ImageError::Cancelled
            }
            Err(error) => ImageError::Store(error),
        }
    }

    /// Decodes, resizes, encodes and verifies a generated image. These `params` are written into the file.
    async fn process_picture(
        &self,
        task: &ImageTask,
        params: &GenerationParams,
        generated: Generation,
    ) -> Result<ProcessedGeneration, UnusableImage> {
        // Even if the image cannot be used, the API has accepted and charged the request.
        self.gate.record_success(self.files.key.job_id).await;
        let usage = generated.usage;
        let GeneratedImage { bytes: image, seed, .. } = generated.into_first();
        let original = (task.params.upscaler == Upscaler::Fast).then(|| image.clone());
        let metadata = self.metadata(task, params, seed);
        let processed = self.metrics.run_stage(Stage::Process, self.files.pool.process(image, metadata)).await;
        let processed = processed.map_err(|defect| unusable_image(&defect))?;
        Ok(ProcessedGeneration { processed, original, seed, usage })
    }

    /// The metadata that is embedded in the image's file.
    fn metadata(&self, task: &ImageTask, params: &GenerationParams, seed: u32) -> ImageMetadata {
        ImageMetadata::new(self.files.key, task.index, &task.description, params, seed, metadata::SOFTWARE)
    }

    /// Cancels the attempt if its other images would fail with this error too.
    fn cancel_attempt(&self, error: &ImageError) {
        let Some(reason) = error.cancel_reason() else { return };
        let fatal = matches!(reason, CancelReason::Fatal(..));
        if self.cancel.cancel(reason) && fatal {
            warn!(code = error.code(), reason = %error, "fatal error; no further request is sent in this attempt");
        }
    }

    /// Replaces a failed image by a cached one if the API is the cause; otherwise returns the error.
    async fn fall_back_to_cache(&self, task: &ImageTask, error: ImageError) -> Result<Asset, ImageError> {
        // An image cancelled because of a fatal cause is treated as if it had failed with that cause.
        let fatal = match (&error, self.cancel.reason()) {
            (ImageError::Cancelled, Some(CancelReason::Fatal(code, message))) => {
                Some(ImageError::Fatal(*code, message.clone()))
            }
            _ => None,
        };
        let cause = fatal.as_ref().unwrap_or(&error);
        if self.cache_mode == CacheMode::Never || !cause.allows_cache_fallback() {
            return Err(error);
        }
        failpoint::reach("before_cache_fallback").await;
        let Some(stored) = copy_cached(&self.files, task).await? else { return Err(error) };
        warn!(code = cause.code(), reason = %cause, file_path = stored.file_path, "cached image used as fallback");
        Ok(self.build_asset(task, stored))
    }

    /// Copies a cached image without sending a request; `None` if there is none.
    pub(crate) async fn reuse_cached(&self, task: &ImageTask) -> Result<Option<Asset>, StoreError> {
        let Some(stored) = copy_cached(&self.files, task).await? else { return Ok(None) };
        info!(file_path = stored.file_path, "cached image used without a request");
        Ok(Some(self.build_asset(task, stored)))
    }

    /// Describes a stored file for the image's row and events.
    fn build_asset(&self, task: &ImageTask, stored: StoredFile) -> Asset {
        self.describe(task.id, task.index, &task.description, stored)
    }

    fn describe(&self, id: Uuid, index: u32, description: &str, stored: StoredFile) -> Asset {
        let spec = self.files.pool.spec();
        let StoredFile { file_path, format, size_bytes, sha256, seed, origin, params } = stored;
        Asset {
            id,
            index,
            uri: self.files.storage.uri(&file_path),
            file_path,
            width: spec.width,
            height: spec.height,
            format,
            size_bytes,
            sha256,
            description: description.to_owned(),
            params,
            seed,
            origin,
        }
    }
}

/// Whether the API may return a better image for the same request depends on the defect.
fn unusable_image(defect: &ImageDefect) -> UnusableImage {
    match defect {
        ImageDefect::Undecodable(_) | ImageDefect::WrongFormat => UnusableImage::damaged(defect.to_string()),
        _ => UnusableImage::rejected(defect.to_string()),
    }
}
