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
    let Some(path) = &task.reserved_path else { return Ok(None) };
    let Some(stored) = read_own_file(files, task.index, path).await? else { return Ok(None) };
    // A worker that was killed before it had upscaled an image leaves one that it has scaled itself.
    if stored.params != task.params && stored.params != task.params.without_upscaler() {
        return Ok(None);
    }
    info!(path, "stored file of an incomplete row adopted");
    if stored.params != task.params {
        let reason = "its worker was lost or stopped before";
        warn!(code = "interrupted", reason, "image not upscaled; the image scaled by the worker is kept");
    }
    Ok(Some(stored))
}

/// Reads the file at a path that an image of this job has reserved; `None` if it is missing or incomplete, or belongs to
/// another image.
pub(super) async fn read_own_file(
    files: &ImageFiles,
    index: u32,
    path: &str,
) -> Result<Option<StoredFile>, ImageError> {
    files.storage.remove_temporary_files(path).await;
    let allowed_sizes = 1..=files.pool.spec().max_bytes;
    let Some(bytes) = files.storage.read(path, allowed_sizes).await? else { return Ok(None) };
    let size_bytes = bytes.len() as u64;
    let Some(FileMetadata { metadata, format, sha256 }) = files.pool.read_file_metadata(bytes).await else {
        return Ok(None);
    };
    if (metadata.job_id, metadata.index) != (files.key.job_id, index) {
        return Ok(None);
    }
    let (file_path, origin) = (path.to_owned(), Origin::Generated);
    Ok(Some(StoredFile { file_path, format, size_bytes, sha256, seed: metadata.seed, origin, params: metadata.params }))
}
