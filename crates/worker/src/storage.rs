//! File storage: a local folder or an S3 bucket. A file is complete or absent.

mod local_file;

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use domain::asset_path;
use futures_util::{Stream, StreamExt, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::spawn_blocking;
use tracing::warn;
use url::Url;

use crate::settings::StorageRoot;

/// A storage operation failed.
#[derive(Debug, thiserror::Error)]
#[error("storage: cannot {operation} {path}")]
pub struct StorageError {
    operation: &'static str,
    path: String,
    #[source]
    source: object_store::Error,
}

/// Limit on any single operation. A file of 10 MiB normally takes less than a second.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Size of the pieces in which a file is read for a slow reader, in bytes.
const PIECE_BYTES: u64 = 1024 * 1024;
/// The file that checks write and remove.
const CHECK_FILE: &str = ".check";
/// Maximum number of temporary files that are removed for one path; killed writers leave fewer.
const MAX_TEMPORARY_FILES: u32 = 100;

/// Limits the duration of an operation, and adds its name and path to the error.
async fn with_timeout<T>(
    operation: &'static str,
    path: &str,
    wait: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StorageError> {
    let timed_out = |_| {
        let source = format!("no response within {OPERATION_TIMEOUT:?}").into();
        Err(object_store::Error::Generic { store: "storage", source })
    };
    let result = tokio::time::timeout(OPERATION_TIMEOUT, wait).await.unwrap_or_else(timed_out);
    result.map_err(|source| StorageError { operation, path: path.to_owned(), source })
}

/// The storage. Paths are relative to its root. Clones share it.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    root: Url,
    /// The root if it is a local folder.
    local_root: Option<PathBuf>,
}

impl Storage {
    /// Opens the storage that the settings name. A missing folder is created; a bucket must exist.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the folder cannot be created or opened, or the settings of the bucket are invalid.
    pub fn open(root: &StorageRoot) -> Result<Self, StorageError> {
        match root {
            StorageRoot::Folder(folder) => Self::open_folder(folder),
            StorageRoot::Bucket { bucket, prefix, aws_variables: aws } => Self::open_bucket(bucket, prefix, aws),
        }
    }

    /// Opens the storage like [`Storage::open`], but creates no folder; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// As [`Storage::open`].
    pub fn open_existing(root: &StorageRoot) -> Result<Option<Self>, StorageError> {
        match root {
            StorageRoot::Folder(folder) if !folder.exists() => Ok(None),
            root => Self::open(root).map(Some),
        }
    }

    fn open_folder(folder: &Path) -> Result<Self, StorageError> {
        let open_error = |source| StorageError { operation: "open", path: folder.display().to_string(), source };
        std::fs::create_dir_all(folder)
            .map_err(|error| open_error(object_store::Error::Generic { store: "file", source: Box::new(error) }))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(open_error)?.with_fsync(true);
        let root = Url::from_directory_path(folder).expect("the settings make the root absolute");
        Ok(Self { store: Arc::new(store), root, local_root: Some(folder.to_owned()) })
    }

    fn open_bucket(bucket: &str, prefix: &str, aws: &[(&'static str, SecretString)]) -> Result<Self, StorageError> {
        // Fails only if a crypto provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let slash = if prefix.is_empty() { "" } else { "/" };
        let name = format!("s3://{bucket}/{prefix}{slash}");
        let open_error = |source| StorageError { operation: "open", path: name.clone(), source };
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        for (name, value) in aws {
            let key: AmazonS3ConfigKey = name.to_lowercase().parse().map_err(open_error)?;
            // An endpoint that is configured with http:// is used without TLS.
            let is_plain_http = name.starts_with("AWS_ENDPOINT_URL") && value.expose_secret().starts_with("http://");
            builder = builder.with_config(key, value.expose_secret());
            if is_plain_http {
                builder = builder.with_allow_http(true);
            }
        }
        // The client's retries end within the limit on an operation.
        let retries = RetryConfig { max_retries: 3, retry_timeout: OPERATION_TIMEOUT, ..RetryConfig::default() };
        let store = builder.with_retry(retries).build().map_err(open_error)?;
        let root = Url::parse(&name)
            .map_err(|error| open_error(object_store::Error::Generic { store: "s3", source: Box::new(error) }))?;
        let store: Arc<dyn ObjectStore> = match prefix {
            "" => Arc::new(store),
            prefix => Arc::new(PrefixStore::new(store, prefix)),
        };
        Ok(Self { store, root, local_root: None })
    }

    /// Stores a file and replaces one that exists at the path. The file is durable on return; after an error nothing of
    /// it is visible.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.put_with_mode(path, bytes, PutMode::Overwrite).await
    }

    /// Stores a file unless the path is taken. Returns `false` if it is.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; nothing of the file is visible then.
    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<bool, StorageError> {
        match self.put_with_mode(path, bytes, PutMode::Create).await {
            Ok(()) => Ok(true),
            Err(StorageError { source: object_store::Error::AlreadyExists { .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put_with_mode(&self, path: &str, bytes: Bytes, mode: PutMode) -> Result<(), StorageError> {
        let Some(root) = &self.local_root else {
            let options = PutOptions { mode, ..PutOptions::default() };
            let key = Key::from(path);
            return with_timeout("store", path, self.store.put_opts(&key, bytes.into(), options)).await.map(drop);
        };
        let file = root.join(path);
        let put = async {
            let error_path = path.to_owned();
            let put = spawn_blocking(move || local_file::put(&file, &bytes, &mode));
            put.await?.map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => {
                    object_store::Error::AlreadyExists { path: error_path, source: error.into() }
                }
                _ => object_store::Error::Generic { store: "file", source: error.into() },
            })
        };
        with_timeout("store", path, put).await
    }

    /// Whether a file exists at the path.
    pub async fn exists(&self, path: &str) -> Result<bool, StorageError> {
        match with_timeout("check", path, self.store.head(&Key::from(path))).await {
            Ok(_) => Ok(true),
            Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a whole file; `None` if it does not exist or its size in bytes is outside the range.
    pub async fn read(&self, path: &str, allowed_sizes: RangeInclusive<u64>) -> Result<Option<Bytes>, StorageError> {
        let operation = "read";
        let read = async {
            let found = self.store.get(&Key::from(path)).await?;
            if !allowed_sizes.contains(&found.meta.size) {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        match with_timeout(operation, path, read).await {
            Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => Ok(None),
            read => read,
        }
    }

    /// Opens a file to read it in pieces, with its size in bytes; `None` if it does not exist.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if it cannot be opened; an item of the stream, if it cannot be read to its end.
    pub async fn open_file(
        &self,
        path: &str,
    ) -> Result<Option<(u64, impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<>)>, StorageError> {
        let key = Key::from(path);
        let meta = match with_timeout("read", path, self.store.head(&key)).await {
            Ok(meta) => meta,
            Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        // One request for each piece: how long the whole file takes depends on the reader, and a response has a limit.
        let (store, path, size) = (self.store.clone(), path.to_owned(), meta.size);
        let pieces = stream::try_unfold(0, move |start: u64| {
            let (store, key, path, etag) = (store.clone(), key.clone(), path.clone(), meta.e_tag.clone());
            async move {
                let end = size.min(start + PIECE_BYTES);
                if start >= end {
                    return Ok(None);
                }
                // Of the same file: it may be replaced meanwhile.
                let options = GetOptions { range: Some((start..end).into()), if_match: etag, ..GetOptions::default() };
                let reading = async { store.get_opts(&key, options).await?.bytes().await };
                let piece = with_timeout("read", &path, reading).await.map_err(std::io::Error::other)?;
                Ok(Some((piece, end)))
            }
        });
        Ok(Some((size, pieces)))
    }

    /// Makes a stored file available under a second path. Returns `false` if that path is taken.
    ///
    /// Uses a hard link on a local disk and a server-side copy in a bucket. If that fails, `bytes` are stored again.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; nothing of the file is visible then.
    pub async fn copy_new(&self, from: &str, to: &str, bytes: Bytes) -> Result<bool, StorageError> {
        match with_timeout("copy", from, self.store.copy_if_not_exists(&Key::from(from), &Key::from(to))).await {
            Ok(()) => Ok(true),
            Err(StorageError { source: object_store::Error::AlreadyExists { .. }, .. }) => Ok(false),
            // A bucket can copy on the server, but without the condition that the target does not exist.
            Err(StorageError {
                source: object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
                ..
            }) => {
                if self.exists(to).await? {
                    return Ok(false);
                }
                match with_timeout("copy", from, self.store.copy(&Key::from(from), &Key::from(to))).await {
                    Ok(()) => Ok(true),
                    Err(_) => self.put_new(to, bytes).await,
                }
            }
            Err(_) => self.put_new(to, bytes).await,
        }
    }

    /// Removes temporary files that a killed or failed writer left next to a path. No other process may be writing to
    /// the path.
    pub async fn remove_temporary_files(&self, path: &str) {
        let Some(folder) = &self.local_root else { return };
        let file = folder.join(path);
        for number in 1..=MAX_TEMPORARY_FILES {
            if tokio::fs::remove_file(local_file::temporary_path(&file, number)).await.is_err() {
                return;
            }
            warn!(path, "temporary file of a killed or failed writer removed");
        }
    }

    /// Checks that the storage responds, without writing: in a versioned bucket each write would remain.
    pub async fn check_readable(&self) -> Result<(), StorageError> {
        if let Some(root) = &self.local_root {
            let found = tokio::fs::read_dir(root).await;
            found.map(drop).map_err(|error| StorageError {
                operation: "read",
                path: root.display().to_string(),
                source: object_store::Error::Generic { store: "file", source: Box::new(error) },
            })?;
        }
        self.exists(CHECK_FILE).await.map(drop)
    }

    /// Checks that files can currently be stored below the root: stores one and removes it.
    pub async fn check_writable(&self) -> Result<(), StorageError> {
        self.write_and_remove(CHECK_FILE).await
    }

    /// Checks that a file can currently be stored at this path: stores one and removes it.
    pub async fn check_writable_at(&self, path: &str) -> Result<(), StorageError> {
        self.remove_temporary_files(path).await;
        self.write_and_remove(path).await
    }

    async fn write_and_remove(&self, path: &str) -> Result<(), StorageError> {
        self.put(path, Bytes::from_static(b"check")).await?;
        match with_timeout("remove", path, self.store.delete(&Key::from(path))).await {
            // A concurrent check has already removed the file.
            Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => Ok(()),
            removed => removed,
        }
    }

    /// Removes files, and returns those that could not be removed, each with the reason. Files that do not exist count as
    /// removed.
    pub async fn delete_all(&self, paths: &[String]) -> Vec<(String, StorageError)> {
        let keys: Vec<_> = paths.iter().map(|path| Ok(Key::from(path.as_str()))).collect();
        let mut results = self.store.delete_stream(stream::iter(keys).boxed());
        let mut failed = Vec::new();
        // The results are in the order of the paths.
        for path in paths {
            let no_result = || object_store::Error::Generic { store: "storage", source: "no result".into() };
            let next = async { results.next().await.unwrap_or_else(|| Err(no_result())) };
            match with_timeout("remove", path, next).await {
                Ok(_) | Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => {}
                Err(error) => failed.push((path.clone(), error)),
            }
        }
        failed
    }

    /// The paths of all files of projects.
    ///
    /// # Errors
    ///
    /// An item is an error if the files cannot be listed.
    pub fn list_files(&self) -> impl Stream<Item = Result<String, StorageError>> + Send {
        let root = Key::from(asset_path::ROOT);
        self.store.list(Some(&root)).map(|file| {
            let list_error = |source| StorageError { operation: "list", path: asset_path::ROOT.to_owned(), source };
            file.map(|file| file.location.to_string()).map_err(list_error)
        })
    }

    /// URI at which the rendering stage opens the file.
    pub fn uri(&self, path: &str) -> String {
        self.root.join(path).map_or_else(|_| format!("{}{path}", self.root), String::from)
    }

    /// The root as a URL, for display.
    pub fn root(&self) -> &str {
        self.root.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stored_file_is_complete_and_found_by_uri() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::open_folder(&folder.path().join("new")).expect("the storage opens");
        let path = "projects/42/assets/image_001.png";
        assert!(!storage.exists(path).await.expect("the storage responds"));
        storage.put(path, Bytes::from_static(b"one")).await.expect("stored");
        storage.put(path, Bytes::from_static(b"other")).await.expect("stored again");
        assert!(storage.exists(path).await.expect("the storage responds"));
        let file = Url::parse(&storage.uri(path)).expect("a URL").to_file_path().expect("a file");
        assert_eq!(std::fs::read(&file).expect("a file"), b"other");
        storage.check_writable().await.expect("the storage is writable");
        storage.check_readable().await.expect("the storage is readable");
        let left: Vec<_> = std::fs::read_dir(folder.path().join("new")).expect("a folder").collect();
        assert_eq!(left.len(), 1, "only projects/ is left");
        std::fs::remove_dir_all(folder.path().join("new")).expect("remove the storage");
        storage.check_readable().await.expect_err("the storage is gone");
    }

    #[tokio::test]
    async fn only_temporary_files_of_the_path_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::open_folder(folder.path()).expect("the storage opens");
        storage.put("a/one.png", Bytes::from_static(b"one")).await.expect("stored");
        for stray in ["one.png#1", "one.png#2", "two.png#1"] {
            std::fs::write(folder.path().join("a").join(stray), "half").expect("a file");
        }
        storage.remove_temporary_files("a/one.png").await;
        let mut left: Vec<_> = std::fs::read_dir(folder.path().join("a"))
            .expect("a folder")
            .map(|file| file.expect("a file").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["one.png", "two.png#1"]);
        assert!(!storage.put_new("a/one.png", Bytes::from_static(b"new")).await.expect("the storage responds"));
        assert!(storage.put_new("a/three.png", Bytes::from_static(b"new")).await.expect("the storage responds"));
    }

    #[tokio::test]
    async fn file_is_read_whole_and_copied_without_its_bytes() {
        use std::os::unix::fs::MetadataExt;

        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::open_folder(folder.path()).expect("the storage opens");
        storage.put("a/one.png", Bytes::from_static(b"one")).await.expect("stored");
        let read = async |path, size: u64| storage.read(path, size..=size).await.expect("the storage responds");
        assert_eq!(read("a/one.png", 3).await.as_deref(), Some(&b"one"[..]));
        assert_eq!(read("a/one.png", 4).await, None);
        assert_eq!(read("a/two.png", 3).await, None);
        assert!(storage.copy_new("a/one.png", "b/two.png", Bytes::from_static(b"one")).await.expect("copied"));
        assert_eq!(read("b/two.png", 3).await.as_deref(), Some(&b"one"[..]));
        let inode = |path| std::fs::metadata(folder.path().join(path)).expect("a file").ino();
        assert_eq!(inode("a/one.png"), inode("b/two.png"));
        // Storing another file under one path later does not change the other.
        storage.put("a/one.png", Bytes::from_static(b"new")).await.expect("stored");
        assert_eq!(read("b/two.png", 3).await.as_deref(), Some(&b"one"[..]));
        // If there is no file to link to, the bytes are stored.
        assert!(storage.copy_new("a/gone.png", "b/three.png", Bytes::from_static(b"three")).await.expect("stored"));
        assert_eq!(read("b/three.png", 5).await.as_deref(), Some(&b"three"[..]));
    }

    #[tokio::test]
    async fn open_fails_if_folder_cannot_be_created() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("file"), b"x").expect("a file");
        let error = Storage::open_folder(&folder.path().join("file/below")).err().expect("opening below a file fails");
        assert!(error.to_string().contains("storage: cannot open"), "{error}");
    }
}
