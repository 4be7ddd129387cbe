//! Copies an earlier image of the same prompt and parameters.

use domain::outcome::Origin;
use store::{CachedImage, StoreError};
use tracing::warn;

use super::error::ImageError;
use super::file::{ImageFiles, StoredFile};
use super::task::ImageTask;
use crate::error_chain::error_chain;
use crate::telemetry::metrics::Coded;

/// Copies the newest earlier image whose file is there and whole to this image's own path; `None` where there is none.
pub(super) async fn copy_earlier(files: &ImageFiles, task: &ImageTask) -> Result<Option<StoredFile>, StoreError> {
    for found in files.store.cached_images(task.fingerprint).await? {
        match copy(files, task, &found).await {
            Ok(Some(file_path)) => {
                let CachedImage { file_path: _, format, size_bytes, sha256, seed } = found;
                return Ok(Some(StoredFile { file_path, format, size_bytes, sha256, seed, origin: Origin::Cache }));
            }
            Ok(None) => {}
            Err(ImageError::Store(error)) => return Err(error),
            Err(error) => {
                let (code, reason) = (error.code(), error_chain(&error));
                warn!(code, reason, cached = found.file_path, "a cached image cannot be used");
            }
        }
    }
    Ok(None)
}

/// The path of the copy; `None` where the file is missing, damaged or too large for the present settings.
async fn copy(files: &ImageFiles, task: &ImageTask, found: &CachedImage) -> Result<Option<String>, ImageError> {
    if found.size_bytes >= files.pool.spec().max_bytes {
        return Ok(None);
    }
    let lengths = found.size_bytes..=found.size_bytes;
    let Some(bytes) = files.storage.read(&found.file_path, lengths).await? else {
        warn!(cached = found.file_path, "the file of a cached image is missing");
        return Ok(None);
    };
    if let Err(reason) = files.pool.check_stored(bytes.clone(), found.sha256.clone()).await {
        warn!(reason, cached = found.file_path, "a cached image cannot be used");
        return Ok(None);
    }
    let file_path = files.reserve_path(task, found.format).await?;
    files.copy(&found.file_path, &file_path, bytes).await?;
    Ok(Some(file_path))
}
