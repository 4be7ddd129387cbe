//! Makes one image: adopts a stored file, generates a picture, or lets an earlier image stand in.
//!
//! Knows nothing of the job's progress: what became of an image is reported, and recorded by the attempt.

mod adopt;
mod cache;
mod error;
mod file;
mod task;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use domain::command::{CacheMode, Command};
use domain::image_spec::ImageDefect;
use domain::outcome::{Asset, Origin};
use domain::story::Story;
use picture::{Finished, texts};
use stability_client::{CallOptions, Client, GenerateError, Generated, Party, Picture, UnusablePicture, Usage};
use store::{Lease, Store, StoreError};
use tracing::{Span, info, info_span, warn};

use crate::budget::JobBudget;
use crate::cancel::{CancelReason, CancelToken};
use crate::failpoint;
use crate::image_pool::ImagePool;
use crate::storage::Storage;
use crate::telemetry::metrics::{Coded, Metrics, Stage};
use adopt::find_stored;
use cache::copy_earlier;
use file::{ImageFiles, StoredFile};

pub(crate) use error::ImageError;
pub(crate) use task::{ImageReport, ImageTask};

/// Requests of an urgent job for each one of another.
const URGENT_WEIGHT: NonZeroU32 = NonZeroU32::new(2).expect("not 0");

/// What every image is made with.
#[derive(Clone)]
pub(crate) struct ImageParts {
    pub(crate) client: Client,
    pub(crate) pool: ImagePool,
    pub(crate) storage: Storage,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    /// How long a lease holds when it is renewed.
    pub(crate) lease_length: Duration,
}

/// Makes the images of one attempt at a job, under its lease.
pub(crate) struct ImageGenerator {
    client: Client,
    files: ImageFiles,
    metrics: Metrics,
    budget: Arc<JobBudget>,
    cancel: CancelToken,
    cache_mode: CacheMode,
    party: Party,
}

/// The span of one image, below the current span.
pub(crate) fn image_span(index: u32) -> Span {
    info_span!("image", image.index = index)
}

impl ImageGenerator {
    /// A generator for one attempt. Images of an `urgent` job have two turns for each one of another job.
    pub(crate) fn new(
        parts: &ImageParts,
        command: &Command,
        urgent: bool,
        lease: Lease,
        budget: Arc<JobBudget>,
        cancel: CancelToken,
    ) -> Self {
        let ImageParts { client, pool, storage, store, metrics, lease_length } = parts.clone();
        let weight = if urgent { URGENT_WEIGHT } else { NonZeroU32::MIN };
        Self {
            client,
            files: ImageFiles { store, storage, pool, key: command.key(), lease, lease_length },
            metrics,
            budget,
            cancel,
            cache_mode: command.config.cache.unwrap_or_default(),
            party: Party { id: command.job_id.as_u128(), weight },
        }
    }

    /// Adopts, generates or copies one image; called inside the image's span. A failure that the other images would meet cancels the attempt first. A
    /// cancelled attempt makes no further request; after a fatal cause an earlier image can still stand in.
    pub(crate) async fn run(self: Arc<Self>, task: ImageTask) -> ImageReport {
        let mut usage = Usage::default();
        let result = match find_stored(&self.files, &task).await {
            Ok(Some(stored)) => Ok(self.asset(&task, stored)),
            Ok(None) => self.generate(&task, &mut usage).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(asset) => Ok(asset),
            Err(error) => {
                self.cancel_attempt(&error);
                self.stand_in(&task, error).await
            }
        };
        ImageReport { task, span: Span::current(), result, usage }
    }

    /// A new picture of the API, stored under a path of its own.
    async fn generate(&self, task: &ImageTask, usage: &mut Usage) -> Result<Asset, ImageError> {
        if self.cancel.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let budget = self.budget.for_image(task.id);
        let options = CallOptions { stop: self.cancel.token().clone(), budget: &budget, party: self.party };
        let accept = |generated| self.process(task, generated);
        let generating = self.client.generate_with(&task.request, &options, accept);
        let (finished, seed, used) = generating.await.map_err(|GenerateError { error, usage: used }| {
            *usage = used;
            ImageError::from(error)
        })?;
        *usage = used;
        failpoint::reach("before_file").await;
        let Finished { bytes, format, sha256 } = finished;
        let size_bytes = bytes.len() as u64;
        let file_path = self.files.reserve_path(task, format).await?;
        self.metrics.stage(Stage::Store, self.files.write(&file_path, bytes)).await?;
        failpoint::reach("before_row").await;
        let origin = Origin::Generated;
        Ok(self.asset(task, StoredFile { file_path, format, size_bytes, sha256, seed, origin }))
    }

    /// Decodes, scales, encodes and checks a picture of the API.
    async fn process(&self, task: &ImageTask, generated: Generated) -> Result<(Finished, u32, Usage), UnusablePicture> {
        let usage = generated.usage;
        let Picture { image, seed } = generated.into_first();
        let story = Story::new(self.files.key, task.index, &task.description, &task.recipe, seed, texts::SOFTWARE);
        let processed = self.metrics.stage(Stage::Finish, self.files.pool.process(image, story)).await;
        let finished = processed.map_err(|defect| UnusablePicture {
            reason: defect.to_string(),
            damaged: matches!(defect, ImageDefect::Undecodable(_) | ImageDefect::Format),
        })?;
        Ok((finished, seed, usage))
    }

    /// Cancels the attempt where its other images would meet this error too.
    fn cancel_attempt(&self, error: &ImageError) {
        let Some(reason) = error.cancels() else { return };
        let fatal = matches!(reason, CancelReason::Fatal(..));
        if self.cancel.cancel(reason) && fatal {
            warn!(code = error.code(), reason = %error, "every further request would fail; none is sent in this attempt");
        }
    }

    /// An earlier image in place of one that was not made, where the API is the cause.
    async fn stand_in(&self, task: &ImageTask, error: ImageError) -> Result<Asset, ImageError> {
        // An image cancelled by a fatal cause is treated as having failed with it.
        let fatal = match (&error, self.cancel.reason()) {
            (ImageError::Cancelled, Some(CancelReason::Fatal(code, message))) => {
                Some(ImageError::Fatal(*code, message.clone()))
            }
            _ => None,
        };
        let cause = fatal.as_ref().unwrap_or(&error);
        if self.cache_mode == CacheMode::Never || !cause.allows_stand_in() {
            return Err(error);
        }
        failpoint::reach("before_cache_fallback").await;
        let Some(stored) = copy_earlier(&self.files, task).await? else { return Err(error) };
        warn!(code = cause.code(), reason = %cause, file_path = stored.file_path, "an image made before stands in");
        Ok(self.asset(task, stored))
    }

    /// An earlier image, used without a request.
    pub(crate) async fn reuse(&self, task: &ImageTask) -> Result<Option<Asset>, StoreError> {
        let Some(stored) = copy_earlier(&self.files, task).await? else { return Ok(None) };
        info!(file_path = stored.file_path, "an image made before is used");
        Ok(Some(self.asset(task, stored)))
    }

    /// What row and events say of a stored file.
    fn asset(&self, task: &ImageTask, stored: StoredFile) -> Asset {
        let spec = self.files.pool.spec();
        let StoredFile { file_path, format, size_bytes, sha256, seed, origin } = stored;
        Asset {
            id: task.id,
            index: task.index,
            uri: self.files.storage.uri(&file_path),
            file_path,
            width: spec.width,
            height: spec.height,
            format,
            size_bytes,
            sha256,
            description: task.description.clone(),
            recipe: task.recipe.clone(),
            seed,
            origin,
        }
    }
}
