//! One image, from its description to its complete row.

use domain::asset_path;
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::image_spec::ImageFormat;
use domain::outcome::{Asset, ImageFailure, ImageState, Origin};
use stability_client::{Error, Picture, Spent};
use tracing::{Instrument, info, info_span, warn};

use super::board::{Board, Slot};
use super::plan::{Plan, Unplannable};
use super::{JobRunError, Run};
use crate::causes;
use crate::picture::Finished;
use crate::storage::StorageError;
use crate::store::{Cost, StoreError};

/// How the making of one image went wrong.
enum Unmade {
    /// This image failed.
    Image(ImageFailureCode, String),
    /// Every image would fail alike.
    Job(JobFailureCode, String),
    /// Our own infrastructure failed.
    Broken(StoreError),
}

impl From<StoreError> for Unmade {
    fn from(error: StoreError) -> Self {
        Self::Broken(error)
    }
}

impl From<StorageError> for Unmade {
    fn from(error: StorageError) -> Self {
        Self::Image(ImageFailureCode::Storage, causes::joined(&error))
    }
}

impl From<Unplannable> for Unmade {
    fn from(unplannable: Unplannable) -> Self {
        Self::Image(unplannable.code, unplannable.message)
    }
}

/// The fate of every failure of the API.
fn unmade(error: &Error) -> Unmade {
    let image = |code| Unmade::Image(code, error.to_string());
    let job = |code| Unmade::Job(code, error.to_string());
    match error {
        Error::ContentPolicy(_) | Error::Filtered => image(ImageFailureCode::ContentPolicy),
        Error::RateLimited { .. } | Error::Quota(_) => image(ImageFailureCode::RateLimited),
        Error::Damaged { .. } => image(ImageFailureCode::InvalidImage),
        Error::Timeout => image(ImageFailureCode::Timeout),
        Error::InvalidRequest(_) | Error::Rejected(_) => image(ImageFailureCode::RejectedRequest),
        Error::Unauthorized(_) => job(JobFailureCode::Unauthorized),
        Error::OutOfCredit(_) => job(JobFailureCode::InsufficientCredits),
        Error::UnknownEngine(_) => job(JobFailureCode::UnknownEngine),
        Error::Connect(_)
        | Error::Interrupted(_)
        | Error::Server { .. }
        | Error::Unfinished
        | Error::Undecodable(_) => image(ImageFailureCode::ProviderUnavailable),
    }
}

impl Run<'_> {
    /// Brings one image to its end, and writes that end to board and database.
    pub(super) async fn make_image(&self, board: &Board, index: u32) -> Result<(), JobRunError> {
        let span = info_span!("image", index);
        async {
            let slot = board.slot(index);
            let mut spent = Spent::default();
            let made = self.made(&slot, index, &mut spent).await;
            let cost = Cost { requests: spent.requests, charged: spent.maybe_charged };
            let settle = |state| board.settle(index, state, spent.requests, spent.maybe_charged);
            match made {
                Ok(asset) => {
                    self.workshop.store.complete_image(&asset, cost).await?;
                    info!(
                        file_path = asset.file_path,
                        size_bytes = asset.size_bytes,
                        requests = spent.requests,
                        "image completed"
                    );
                    settle(ImageState::Completed(asset));
                    self.announce_progress(board, index, None).await;
                }
                Err(Unmade::Image(code, message)) => {
                    let attempts = slot.requests_before + spent.requests;
                    warn!(
                        code = code.as_str(),
                        reason = message,
                        requests = attempts,
                        description = shortened(&slot.description),
                        "image failed"
                    );
                    let failure = ImageFailure { index, description: slot.description, code, message, attempts };
                    self.workshop.store.fail_image(slot.id, &failure, cost).await?;
                    settle(ImageState::Failed(failure));
                    if !code.may_pass() {
                        self.announce_progress(board, index, Some(code)).await;
                    }
                }
                Err(Unmade::Job(code, message)) => {
                    warn!(code = code.as_str(), reason = message, "no request can succeed; no further one is sent");
                    self.workshop.store.add_cost(slot.id, cost).await?;
                    settle(ImageState::Untried);
                    board.set_fatal(code, message);
                }
                Err(Unmade::Broken(error)) => return Err(error.into()),
            }
            Ok(())
        }
        .instrument(span)
        .await
    }

    async fn made(&self, slot: &Slot, index: u32, spent: &mut Spent) -> Result<Asset, Unmade> {
        let Plan { prompt, request } = self.workshop.planner.plan(self.command, &slot.description)?;
        let generated = match self.workshop.client.generate(&request).await {
            Ok(generated) => generated,
            Err(failure) => {
                *spent = failure.spent;
                return Err(unmade(&failure.error));
            }
        };
        *spent = generated.spent;
        let Picture { image, seed } = generated.into_first();
        let finished = self.workshop.finisher.finish(image).await;
        let finished = finished.map_err(|defect| Unmade::Image(ImageFailureCode::InvalidImage, defect.to_string()))?;
        let Finished { bytes, format, sha256 } = finished;
        let file_path = self.reserve_path(slot, index, format).await?;
        let size_bytes = bytes.len() as u64;
        self.workshop.storage.put(&file_path, bytes).await?;
        let spec = self.workshop.finisher.spec();
        Ok(Asset {
            id: slot.id,
            index,
            uri: self.workshop.storage.uri(&file_path),
            file_path,
            width: spec.width,
            height: spec.height,
            format,
            size_bytes,
            sha256,
            description: slot.description.clone(),
            prompt,
            seed,
            origin: Origin::Generated,
        })
    }

    /// The path this image's file takes: the plain one, unless another job's image or a file of unknown origin has it.
    ///
    /// The row has the path before the file is written, so that after a crash nobody else can take it.
    async fn reserve_path(&self, slot: &Slot, index: u32, format: ImageFormat) -> Result<String, Unmade> {
        let key = self.command.key();
        let plain = asset_path::plain(key.project_id, index, format);
        if slot.reserved_path.as_deref() == Some(plain.as_str()) {
            return Ok(plain);
        }
        let taken = self.workshop.storage.exists(&plain).await?;
        if !taken && self.workshop.store.reserve_path(slot.id, &plain).await? {
            return Ok(plain);
        }
        let own = asset_path::with_job(key.project_id, index, key.job_id, format);
        self.workshop.store.reserve_path(slot.id, &own).await?;
        Ok(own)
    }
}

/// The beginning of a description, for a log line.
fn shortened(text: &str) -> String {
    text.chars().take(50).collect()
}
