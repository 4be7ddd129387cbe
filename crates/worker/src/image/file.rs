//! Reserves the path of an image's file and stores the file there, under the lease of its job.

use std::time::Duration;

use bytes::Bytes;
use domain::asset_path;
use domain::command::JobKey;
use domain::failure::ImageFailureCode;
use domain::generation_params::GenerationParams;
use domain::image_spec::ImageFormat;
use domain::outcome::Origin;
use store::{Lease, Store, StoreError};

use super::error::ImageError;
use super::task::ImageTask;
use crate::image_pool::ImagePool;
use crate::outage::{retry_storage, retry_store};
use crate::storage::Storage;

/// A stored image file.
#[derive(Clone)]
pub(super) struct StoredFile {
    pub(super) file_path: String,
    pub(super) format: ImageFormat,
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
    pub(super) seed: u32,
    pub(super) origin: Origin,
    /// How the image was made.
    pub(super) params: GenerationParams,
}

/// The files of one job.
pub(super) struct ImageFiles {
    pub(super) store: Store,
    pub(super) storage: Storage,
    pub(super) pool: ImagePool,
    pub(super) key: JobKey,
    pub(super) lease: Lease,
    pub(super) lease_duration: Duration,
}

impl ImageFiles {
    /// Reserves the path of an image's file: the default path, unless another job's image or an unknown file has it.
    ///
    /// The row records the path before the file is written, so that no other image takes it after a crash.
    pub(super) async fn reserve_path(&self, task: &ImageTask, format: ImageFormat) -> Result<String, ImageError> {
        let JobKey { job_id, project_id } = self.key;
        let plain = asset_path::default_path(project_id, task.index, format);
        // A path of an earlier attempt is reserved again: it may have been freed and taken by another job since.
        let may_be_own = task.reserved_path.as_deref() == Some(plain.as_str());
        // Retried, because the image was paid for.
        let free = may_be_own || !retry_storage(|| self.storage.exists(&plain)).await?;
        if free && self.try_reserve(task, &plain).await? {
            return Ok(plain);
        }
        let own = asset_path::path_with_job_id(project_id, task.index, job_id, format);
        if self.try_reserve(task, &own).await? {
            return Ok(own);
        }
        Err(ImageError::Failed(ImageFailureCode::Storage, format!("the path {own} belongs to another image")))
    }

    async fn try_reserve(&self, task: &ImageTask, path: &str) -> Result<bool, StoreError> {
        retry_store(|| self.store.reserve_path(self.lease, task.id, path)).await
    }

    /// Stores a new file under a reserved path, with retries, because it was paid for.
    pub(super) async fn write(&self, path: &str, bytes: Bytes) -> Result<(), ImageError> {
        if !retry_storage(|| self.storage.put_new(path, bytes.clone())).await? {
            return self.overwrite(path, bytes).await;
        }
        self.storage.remove_temporary_files(path).await;
        Ok(())
    }

    /// Copies a stored file to a reserved path; `bytes` are its contents.
    pub(super) async fn copy(&self, from: &str, to: &str, bytes: Bytes) -> Result<(), ImageError> {
        if !self.storage.copy_new(from, to, bytes.clone()).await? {
            self.overwrite(to, bytes).await?;
        }
        Ok(())
    }

    /// Replaces a file of an earlier attempt.
    ///
    /// Renews the lease first: a worker that has lost it must not overwrite the file of the next worker.
    pub(super) async fn overwrite(&self, path: &str, bytes: Bytes) -> Result<(), ImageError> {
        retry_store(|| self.store.renew(self.lease, self.lease_duration)).await?;
        retry_storage(|| self.storage.put(path, bytes.clone())).await?;
        // An attempt that fails while the storage is unavailable cannot remove its temporary file.
        self.storage.remove_temporary_files(path).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
