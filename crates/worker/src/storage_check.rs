//! Compares the files of the storage with the rows of images.

use std::collections::{HashMap, HashSet};
use std::pin::pin;

use futures_util::TryStreamExt;
use serde::Serialize;
use store::{FileRow, Store, StoreError};
use uuid::Uuid;

use crate::storage::{Storage, StorageError};

/// Rows of one query.
const PAGE_SIZE: u64 = 10_000;

/// The differences between storage and database, in the order of their paths.
#[derive(Debug, Serialize)]
pub(crate) struct StorageDifferences {
    /// Number of files.
    pub(crate) files: u64,
    /// Number of completed images.
    pub(crate) images: u64,
    /// Files that no image has.
    pub(crate) files_without_rows: Vec<String>,
    /// Completed images whose file does not exist.
    pub(crate) rows_without_files: Vec<MissingFile>,
}

/// A completed image whose file does not exist.
#[derive(Debug, Serialize)]
pub(crate) struct MissingFile {
    pub(crate) path: String,
    pub(crate) job_id: Uuid,
    pub(crate) index: i32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageCheckError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Compares storage and database while workers run. Holds the paths of all images in memory.
///
/// # Errors
///
/// [`StorageCheckError`] if either cannot be read.
pub(crate) async fn compare(store: &Store, storage: &Storage) -> Result<StorageDifferences, StorageCheckError> {
    // Whether the image of a path is completed. The rows are read first: a file is written after its path is reserved.
    let mut rows: HashMap<String, bool> = HashMap::new();
    let mut after = None;
    loop {
        let page = store.read_file_rows(after, PAGE_SIZE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        rows.extend(page.into_iter().map(|row| (row.path, row.is_completed)));
    }
    let images = rows.values().filter(|is_completed| **is_completed).count() as u64;
    let mut files = 0;
    let mut without_rows = Vec::new();
    let mut listed = pin!(storage.list_files());
    while let Some(path) = listed.try_next().await? {
        // Files whose name begins with a dot are those of checks.
        if path.rsplit('/').next().is_some_and(|name| name.starts_with('.')) {
            continue;
        }
        files += 1;
        if rows.remove(&path).is_none() {
            without_rows.push(path);
        }
    }
    let without_files: Vec<String> =
        rows.into_iter().filter(|(_, is_completed)| *is_completed).map(|(path, _)| path).collect();
    // Workers may have changed both meanwhile.
    let known = store.find_file_rows(&without_rows).await?;
    let known: HashSet<String> = known.into_iter().map(|row| row.path).collect();
    without_rows.retain(|path| !known.contains(path));
    without_rows.sort();
    let mut rows_without_files = Vec::new();
    for FileRow { path, job_id, index, is_completed, .. } in store.find_file_rows(&without_files).await? {
        if is_completed && !storage.exists(&path).await? {
            rows_without_files.push(MissingFile { path, job_id, index });
        }
    }
    rows_without_files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(StorageDifferences { files, images, files_without_rows: without_rows, rows_without_files })
}
