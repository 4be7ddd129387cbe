//! Finds the file that an earlier attempt has stored for an image without completing its row: it was paid for.

use domain::outcome::Origin;
use tracing::info;

use super::error::ImageError;
use super::file::{ImageFiles, StoredFile};
use super::task::ImageTask;
use crate::image_pool::ImageMetadata;

/// The stored file of an image; `None` if there is no file, it is not whole, or it was made with other parameters.
pub(super) async fn find_stored(files: &ImageFiles, task: &ImageTask) -> Result<Option<StoredFile>, ImageError> {
    let Some(file_path) = task.reserved_path.clone() else { return Ok(None) };
    files.storage.sweep(&file_path).await;
    let lengths = 1..=files.pool.spec().max_bytes;
    let Some(bytes) = files.storage.read(&file_path, lengths).await? else { return Ok(None) };
    let size_bytes = bytes.len() as u64;
    let Some(ImageMetadata { story, format, sha256 }) = files.pool.read_metadata(bytes).await else { return Ok(None) };
    let ours = (story.job_id, story.index) == (files.key.job_id, task.index) && story.recipe == task.recipe;
    if !ours {
        return Ok(None);
    }
    info!(file_path, "a stored file whose row was not complete is adopted");
    Ok(Some(StoredFile { file_path, format, size_bytes, sha256, seed: story.seed, origin: Origin::Generated }))
}
