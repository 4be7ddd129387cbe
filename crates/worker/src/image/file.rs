//! The file of an image: the path it takes, and storing it there under the lease of its job.

use std::time::Duration;

use bytes::Bytes;
use domain::asset_path;
use domain::command::JobKey;
use domain::failure::ImageFailureCode;
use domain::image_spec::ImageFormat;
use domain::outcome::Origin;
use store::{Lease, Store, StoreError};

use super::error::ImageError;
use super::task::ImageTask;
use crate::image_pool::ImagePool;
use crate::retry::retry;
use crate::storage::Storage;

/// A file that is stored.
pub(super) struct StoredFile {
    pub(super) file_path: String,
    pub(super) format: ImageFormat,
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
    pub(super) seed: u32,
    pub(super) origin: Origin,
}

/// The files of one job.
pub(super) struct ImageFiles {
    pub(super) store: Store,
    pub(super) storage: Storage,
    pub(super) pool: ImagePool,
    pub(super) key: JobKey,
    pub(super) lease: Lease,
    pub(super) lease_length: Duration,
}

impl ImageFiles {
    /// Reserves the path of an image's file: the plain one, unless another job's image or an unknown file has it.
    ///
    /// The row has the path before the file is written, so that after a crash no other image takes it.
    pub(super) async fn reserve_path(&self, task: &ImageTask, format: ImageFormat) -> Result<String, ImageError> {
        let JobKey { job_id, project_id } = self.key;
        let plain = asset_path::plain(project_id, task.index, format);
        if task.reserved_path.as_deref() == Some(plain.as_str()) {
            return Ok(plain);
        }
        let taken = self.storage.exists(&plain).await?;
        if !taken && self.reserve(task, &plain).await? {
            return Ok(plain);
        }
        let own = asset_path::with_job(project_id, task.index, job_id, format);
        if self.reserve(task, &own).await? {
            return Ok(own);
        }
        Err(ImageError::Failed(ImageFailureCode::Storage, format!("the path {own} belongs to another image")))
    }

    async fn reserve(&self, task: &ImageTask, path: &str) -> Result<bool, StoreError> {
        retry(|| self.store.reserve_path(self.lease, task.id, path)).await
    }

    /// Stores a new file under a reserved path.
    pub(super) async fn write(&self, path: &str, bytes: Bytes) -> Result<(), ImageError> {
        if !self.storage.put_new_patiently(path, bytes.clone()).await? {
            self.overwrite(path, bytes).await?;
        }
        Ok(())
    }

    /// Copies a stored file to a reserved path; `bytes` are its contents.
    pub(super) async fn copy(&self, from: &str, to: &str, bytes: Bytes) -> Result<(), ImageError> {
        if !self.storage.copy_new(from, to, bytes.clone()).await? {
            self.overwrite(to, bytes).await?;
        }
        Ok(())
    }

    /// Replaces a file of an earlier attempt. The lease is renewed first: a worker that has lost it must not replace the next one's file.
    async fn overwrite(&self, path: &str, bytes: Bytes) -> Result<(), ImageError> {
        retry(|| self.store.renew(self.lease, self.lease_length)).await?;
        Ok(self.storage.put(path, bytes).await?)
    }
}
