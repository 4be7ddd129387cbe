//! Finds a file that an earlier attempt paid for and stored without completing the image's row.

use domain::outcome::Origin;
use tracing::{info, warn};

use super::error::ImageError;
use super::file::{ImageFiles, StoredFile};
use super::task::ImageTask;
use crate::image_pool::FileMetadata;

/// Returns the stored file of an image; `None` if it is missing or incomplete, or was made with other parameters.
pub(super) async fn find_adoptable_file(
    files: &ImageFiles,
    task: &ImageTask,
) -> Result<Option<StoredFile>, ImageError> {
    let Some(file_path) = task.reserved_path.clone() else { return Ok(None) };
    files.storage.remove_temporary_files(&file_path).await;
    let allowed_sizes = 1..=files.pool.spec().max_bytes;
    let Some(bytes) = files.storage.read(&file_path, allowed_sizes).await? else { return Ok(None) };
    let size_bytes = bytes.len() as u64;
    let Some(FileMetadata { metadata, format, sha256 }) = files.pool.read_file_metadata(bytes).await else {
        return Ok(None);
    };
    let is_own = (metadata.job_id, metadata.index) == (files.key.job_id, task.index);
    // A worker that was killed before it had upscaled an image leaves one that it has scaled itself.
    let has_params = metadata.params == task.params || metadata.params == task.params.without_upscaler();
    if !is_own || !has_params {
        return Ok(None);
    }
    info!(file_path, "stored file of an incomplete row adopted");
    if metadata.params != task.params {
        let reason = "its worker was lost or stopped before";
        warn!(code = "interrupted", reason, "image not upscaled; the image scaled by the worker is kept");
    }
    let (seed, origin, params) = (metadata.seed, Origin::Generated, metadata.params);
    Ok(Some(StoredFile { file_path, format, size_bytes, sha256, seed, origin, params }))
}
