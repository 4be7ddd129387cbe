//! A picture that is there: its path, its file, and what is said of it.

use bytes::Bytes;
use domain::asset_path;
use domain::failure::ImageFailureCode;
use domain::image_spec::ImageFormat;
use domain::outcome::{Asset, Origin};
use tracing::info;

use super::Run;
use super::board::Slot;
use super::make::Unmade;
use super::plan::Plan;
use crate::finisher::Told;
use crate::store::StoreError;

/// A file that is stored.
pub(super) struct Stored {
    pub(super) file_path: String,
    pub(super) format: ImageFormat,
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
}

impl Run<'_> {
    /// The file that a former try stored for this image, where it did not live to complete the row: it was paid for.
    pub(super) async fn adopted(&self, slot: &Slot, index: u32, plan: &Plan) -> Result<Option<Asset>, Unmade> {
        let Some(file_path) = slot.reserved_path.clone() else { return Ok(None) };
        self.workshop.storage.sweep(&file_path).await;
        let lengths = 1..=self.workshop.finisher.spec().max_bytes;
        let Some(bytes) = self.workshop.storage.read(&file_path, lengths).await? else { return Ok(None) };
        let size_bytes = bytes.len() as u64;
        let Some(Told { story, format, sha256 }) = self.workshop.finisher.told(bytes).await else { return Ok(None) };
        let ours = (story.job_id, story.index) == (self.command.job_id, index) && story.recipe == plan.recipe;
        if !ours {
            return Ok(None);
        }
        info!(file_path, "a stored file whose row was not complete is adopted");
        let stored = Stored { file_path, format, size_bytes, sha256 };
        Ok(Some(self.asset(slot, index, plan, stored, story.seed, Origin::Generated)))
    }

    /// Stores a file where something of a former try stands. Who has lost the lease meanwhile must not write over what the next holder has stored.
    pub(super) async fn put_over(&self, file_path: &str, bytes: Bytes) -> Result<(), Unmade> {
        self.workshop.patiently(|| self.workshop.store.renew(self.lease, self.workshop.jobs.lease)).await?;
        Ok(self.workshop.storage.put(file_path, bytes).await?)
    }

    /// What the row and the events say of a stored file.
    pub(super) fn asset(
        &self,
        slot: &Slot,
        index: u32,
        plan: &Plan,
        stored: Stored,
        seed: u32,
        origin: Origin,
    ) -> Asset {
        let spec = self.workshop.finisher.spec();
        let Stored { file_path, format, size_bytes, sha256 } = stored;
        Asset {
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
            recipe: plan.recipe.clone(),
            seed,
            origin,
        }
    }

    /// The path this image's file takes: the plain one, unless another job's image or a file of unknown origin has it.
    ///
    /// The row has the path before the file is written, so that after a crash nobody else can take it.
    pub(super) async fn reserve_path(&self, slot: &Slot, index: u32, format: ImageFormat) -> Result<String, Unmade> {
        let key = self.command.key();
        let plain = asset_path::plain(key.project_id, index, format);
        if slot.reserved_path.as_deref() == Some(plain.as_str()) {
            return Ok(plain);
        }
        let taken = self.workshop.storage.exists(&plain).await?;
        if !taken && self.reserve(slot, &plain).await? {
            return Ok(plain);
        }
        let own = asset_path::with_job(key.project_id, index, key.job_id, format);
        if self.reserve(slot, &own).await? {
            return Ok(own);
        }
        Err(Unmade::Image(ImageFailureCode::Storage, format!("the path {own} belongs to another image")))
    }

    async fn reserve(&self, slot: &Slot, path: &str) -> Result<bool, StoreError> {
        self.workshop.patiently(|| self.workshop.store.reserve_path(self.lease, slot.id, path)).await
    }
}
