//! Copies a cached image: an earlier one with the same prompt and parameters.

use domain::outcome::Origin;
use store::{CachedImage, StoreError};
use tracing::warn;

use super::error::ImageError;
use super::file::{ImageFiles, StoredFile};
use super::task::ImageTask;
use crate::error_chain::error_chain;
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

/// Copies a cached image and returns the new path.
///
/// Returns `None` if the file is missing, damaged or too large for the current settings.
async fn try_copy(files: &ImageFiles, task: &ImageTask, found: &CachedImage) -> Result<Option<String>, ImageError> {
    if found.size_bytes >= files.pool.spec().max_bytes {
        return Ok(None);
    }
    let allowed_sizes = found.size_bytes..=found.size_bytes;
    let Some(bytes) = files.storage.read(&found.file_path, allowed_sizes).await? else {
        warn!(cached = found.file_path, "file of a cached image is missing or has another size");
        return Ok(None);
    };
    if let Err(reason) = files.pool.verify_stored(bytes.clone(), found.sha256.clone()).await {
        warn!(reason, cached = found.file_path, "cached image cannot be used");
        return Ok(None);
    }
    let file_path = files.reserve_path(task, found.format).await?;
    files.copy(&found.file_path, &file_path, bytes).await?;
    Ok(Some(file_path))
}
