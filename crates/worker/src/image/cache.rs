//! Copies a cached image: an earlier one with the same prompt and parameters.

use bytes::Bytes;
use domain::outcome::Origin;
use store::{CachedImage, Store, StoreError};
use tracing::warn;
use uuid::Uuid;

use super::error::ImageError;
use super::file::{ImageFiles, StoredFile};
use super::task::ImageTask;
use crate::error_chain::error_chain;
use crate::image_pool::ImagePool;
use crate::storage::{Storage, StorageError};
use crate::telemetry::metrics::ErrorCode;

/// Copies the newest cached image with an intact file to this image's own path; `None` if there is none.
pub(super) async fn copy_cached(files: &ImageFiles, task: &ImageTask) -> Result<Option<StoredFile>, StoreError> {
    for cached in files.store.find_cached_images(task.fingerprint).await? {
        match try_copy(files, task, &cached).await {
            Ok(Some(file_path)) => {
                let CachedImage { file_path: _, format, size_bytes, sha256, seed } = cached;
                let (origin, params) = (Origin::Cache, task.params.clone());
                return Ok(Some(StoredFile { file_path, format, size_bytes, sha256, seed, origin, params }));
            }
            Ok(None) => {}
            Err(ImageError::Store(error)) => return Err(error),
            Err(error) => {
                let (code, reason) = (error.code(), error_chain(&error));
                warn!(code, reason, cached = cached.file_path, "cached image cannot be used");
            }
        }
    }
    Ok(None)
}

/// Whether there is a cached image with this fingerprint and an intact file.
///
/// # Errors
///
/// [`StoreError`] if the rows of cached images cannot be read. An image whose file cannot be read does not count.
pub(crate) async fn has_cached(
    store: &Store,
    storage: &Storage,
    pool: &ImagePool,
    fingerprint: Uuid,
) -> Result<bool, StoreError> {
    for cached in store.find_cached_images(fingerprint).await? {
        if matches!(read_intact(storage, pool, &cached).await, Ok(Some(_))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the file of a cached image; `None` if it is missing, damaged or too large for the current settings.
async fn read_intact(storage: &Storage, pool: &ImagePool, found: &CachedImage) -> Result<Option<Bytes>, StorageError> {
    if found.size_bytes >= pool.spec().max_bytes {
        return Ok(None);
    }
    let allowed_sizes = found.size_bytes..=found.size_bytes;
    let Some(bytes) = storage.read(&found.file_path, allowed_sizes).await? else {
        warn!(cached = found.file_path, "file of a cached image is missing or has another size");
        return Ok(None);
    };
    if let Err(reason) = pool.verify_stored(bytes.clone(), found.sha256.clone()).await {
        warn!(reason, cached = found.file_path, "cached image cannot be used");
        return Ok(None);
    }
    Ok(Some(bytes))
}

/// Copies a cached image and returns the new path.
///
/// Returns `None` if the file is missing, damaged or too large for the current settings.
async fn try_copy(files: &ImageFiles, task: &ImageTask, found: &CachedImage) -> Result<Option<String>, ImageError> {
    let Some(bytes) = read_intact(&files.storage, &files.pool, found).await? else { return Ok(None) };
    let file_path = files.reserve_path(task, found.format).await?;
    files.copy(&found.file_path, &file_path, bytes).await?;
    Ok(Some(file_path))
}
