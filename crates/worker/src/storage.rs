//! Where files go: whole, or not at all.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backon::Retryable;
use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig};
use secrecy::{ExposeSecret, SecretString};
use tracing::warn;
use url::Url;

use crate::error_chain::error_chain;
use crate::settings::StorageRoot;

/// A file could not be stored or looked at.
#[derive(Debug, thiserror::Error)]
#[error("storage cannot {doing} {path}")]
pub struct StorageError {
    doing: &'static str,
    path: String,
    #[source]
    source: object_store::Error,
}

/// The bound on any single operation: a file of 10 MiB takes less than a second, or the storage is in trouble.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// More than this a path's killed writers do not leave behind.
const MAX_STRAYS: u32 = 100;
/// The waits before a file that was not stored is stored again.
const PUT_DELAYS: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// Bounds a wait for the storage, and names what was waited for.
async fn answered<T>(
    doing: &'static str,
    path: &str,
    wait: impl Future<Output = object_store::Result<T>>,
) -> Result<T, StorageError> {
    let late = |_| {
        let source = format!("no answer within {ANSWER_TIMEOUT:?}").into();
        Err(object_store::Error::Generic { store: "storage", source })
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, wait).await.unwrap_or_else(late);
    answer.map_err(|source| StorageError { doing, path: path.to_owned(), source })
}

/// The storage root. Paths are relative to it. Clones share it.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    root: Url,
    /// Where the root is a folder.
    folder: Option<PathBuf>,
}

impl Storage {
    /// Opens what the settings name. A folder is made where it is missing; a bucket must be there.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where a folder cannot be made or opened, or what is set for a bucket is of no use.
    pub fn open(root: &StorageRoot) -> Result<Self, StorageError> {
        match root {
            StorageRoot::Folder(folder) => Self::folder(folder),
            StorageRoot::Bucket { bucket, prefix, aws } => Self::bucket(bucket, prefix, aws),
        }
    }

    fn folder(folder: &Path) -> Result<Self, StorageError> {
        let failed = |source| StorageError { doing: "open", path: folder.display().to_string(), source };
        std::fs::create_dir_all(folder)
            .map_err(|error| failed(object_store::Error::Generic { store: "file", source: Box::new(error) }))?;
        let store = LocalFileSystem::new_with_prefix(folder).map_err(failed)?.with_fsync(true);
        let root = Url::from_directory_path(folder).expect("the settings make the root absolute");
        Ok(Self { store: Arc::new(store), root, folder: Some(folder.to_owned()) })
    }

    fn bucket(bucket: &str, prefix: &str, aws: &[(&'static str, SecretString)]) -> Result<Self, StorageError> {
        // Fails only where a provider was chosen before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let slash = if prefix.is_empty() { "" } else { "/" };
        let name = format!("s3://{bucket}/{prefix}{slash}");
        let failed = |source| StorageError { doing: "open", path: name.clone(), source };
        let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
        for (name, value) in aws {
            let key: AmazonS3ConfigKey = name.to_lowercase().parse().map_err(failed)?;
            // An endpoint without TLS was chosen on purpose.
            let plain = name.starts_with("AWS_ENDPOINT_URL") && value.expose_secret().starts_with("http://");
            builder = builder.with_config(key, value.expose_secret());
            if plain {
                builder = builder.with_allow_http(true);
            }
        }
        // The bounds on waiting are ours.
        let retries = RetryConfig { max_retries: 3, retry_timeout: ANSWER_TIMEOUT, ..RetryConfig::default() };
        let store = builder.with_retry(retries).build().map_err(failed)?;
        let root = Url::parse(&name)
            .map_err(|error| failed(object_store::Error::Generic { store: "s3", source: Box::new(error) }))?;
        let store: Arc<dyn ObjectStore> = match prefix {
            "" => Arc::new(store),
            prefix => Arc::new(PrefixStore::new(store, prefix)),
        };
        Ok(Self { store, root, folder: None })
    }

    /// Stores a file under a path, in place of what may stand there. The file is on disk when this returns; after a failure
    /// nothing of it is seen.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), StorageError> {
        let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
        answered("store", path, self.store.put_opts(&Key::from(path), bytes.into(), options)).await.map(drop)
    }

    /// Stores a file under a path where nothing stands. `false` where something does.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing of it is seen.
    pub async fn put_new(&self, path: &str, bytes: Bytes) -> Result<bool, StorageError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match answered("store", path, self.store.put_opts(&Key::from(path), bytes.into(), options)).await {
            Ok(_) => Ok(true),
            Err(StorageError { source: object_store::Error::AlreadyExists { .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// As [`Storage::put_new`], tried a few times over some seconds, since what is stored was paid for.
    ///
    /// # Errors
    ///
    /// [`StorageError`] of the last time.
    pub async fn put_new_patiently(&self, path: &str, bytes: Bytes) -> Result<bool, StorageError> {
        let delays = PUT_DELAYS.into_iter();
        (|| self.put_new(path, bytes.clone()))
            .retry(delays)
            .notify(|error, wait| warn!(error = error_chain(error), ?wait, "a file was not stored, trying again"))
            .await
    }

    /// Whether a file stands there.
    pub async fn exists(&self, path: &str) -> Result<bool, StorageError> {
        match answered("look at", path, self.store.head(&Key::from(path))).await {
            Ok(_) => Ok(true),
            Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The whole of a file; `None` where none stands there, or one of a length that is not among these.
    pub async fn read(&self, path: &str, lengths: RangeInclusive<u64>) -> Result<Option<Bytes>, StorageError> {
        let doing = "read";
        let read = async {
            let found = self.store.get(&Key::from(path)).await?;
            if !lengths.contains(&found.meta.size) {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        match answered(doing, path, read).await {
            Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => Ok(None),
            read => read,
        }
    }

    /// Lets a file stand under a second path too, where nothing stands; `false` where something does. Without a copy of its bytes where the storage
    /// can do that (a hard link on a local disk), else they are stored again.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; then nothing of it is seen.
    pub async fn copy_new(&self, from: &str, to: &str, bytes: Bytes) -> Result<bool, StorageError> {
        match answered("copy", from, self.store.copy_if_not_exists(&Key::from(from), &Key::from(to))).await {
            Ok(()) => Ok(true),
            Err(StorageError { source: object_store::Error::AlreadyExists { .. }, .. }) => Ok(false),
            // A bucket copies by itself, but not on a condition.
            Err(StorageError {
                source: object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
                ..
            }) => {
                if self.exists(to).await? {
                    return Ok(false);
                }
                match answered("copy", from, self.store.copy(&Key::from(from), &Key::from(to))).await {
                    Ok(()) => Ok(true),
                    Err(_) => self.put_new(to, bytes).await,
                }
            }
            Err(_) => self.put_new(to, bytes).await,
        }
    }

    /// Removes what a writer that was killed half way has left beside a path. Nobody else may be writing there.
    pub async fn sweep(&self, path: &str) {
        let Some(folder) = &self.folder else { return };
        let file = folder.join(path).into_os_string();
        // The local storage writes to the name with a number behind it, from 1, and renames that.
        for number in 1..=MAX_STRAYS {
            let mut stray = file.clone();
            stray.push(format!("#{number}"));
            if tokio::fs::remove_file(&stray).await.is_err() {
                return;
            }
            warn!(path, "what a killed writer left behind was removed");
        }
    }

    /// Whether files can be stored below the root at this moment.
    pub async fn check(&self) -> Result<(), StorageError> {
        self.probe(".check").await
    }

    /// Whether a file can be stored at this path at this moment: stores one, and removes it.
    pub async fn check_at(&self, path: &str) -> Result<(), StorageError> {
        self.sweep(path).await;
        self.probe(path).await
    }

    async fn probe(&self, path: &str) -> Result<(), StorageError> {
        self.put(path, Bytes::from_static(b"check")).await?;
        match answered("remove", path, self.store.delete(&Key::from(path))).await {
            // Somebody else looks at the same time.
            Err(StorageError { source: object_store::Error::NotFound { .. }, .. }) => Ok(()),
            removed => removed,
        }
    }

    /// Where a renderer opens the file.
    pub fn uri(&self, path: &str) -> String {
        self.root.join(path).map_or_else(|_| format!("{}{path}", self.root), String::from)
    }

    /// The root, for people.
    pub fn root(&self) -> &str {
        self.root.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stored_file_is_whole_and_found_by_its_uri() {
        let folder = tempfile::tempdir().expect("a folder");
        let storage = Storage::folder(&folder.path().join("new")).expect("a storage");
        let path = "projects/42/assets/image_001.png";
        assert!(!storage.exists(path).await.expect("an answer"));
        storage.put(path, Bytes::from_static(b"one")).await.expect("stored");
        storage.put(path, Bytes::from_static(b"other")).await.expect("stored again");
        assert!(storage.exists(path).await.expect("an answer"));
        let file = Url::parse(&storage.uri(path)).expect("a URL").to_file_path().expect("a file");
        assert_eq!(std::fs::read(&file).expect("a file"), b"other");
        storage.check().await.expect("it can be written");
        let left: Vec<_> = std::fs::read_dir(folder.path().join("new")).expect("a folder").collect();
        assert_eq!(left.len(), 1, "only projects/ is left");
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_behind_is_swept_away_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let storage = Storage::folder(folder.path()).expect("a storage");
        storage.put("a/one.png", Bytes::from_static(b"one")).await.expect("stored");
        for stray in ["one.png#1", "one.png#2", "two.png#1"] {
            std::fs::write(folder.path().join("a").join(stray), "half").expect("a file");
        }
        storage.sweep("a/one.png").await;
        let mut left: Vec<_> = std::fs::read_dir(folder.path().join("a"))
            .expect("a folder")
            .map(|file| file.expect("a file").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["one.png", "two.png#1"]);
        assert!(!storage.put_new("a/one.png", Bytes::from_static(b"new")).await.expect("an answer"));
        assert!(storage.put_new("a/three.png", Bytes::from_static(b"new")).await.expect("an answer"));
    }

    #[tokio::test]
    async fn a_file_is_read_whole_or_not_at_all_and_copied_without_its_bytes() {
        use std::os::unix::fs::MetadataExt;

        let folder = tempfile::tempdir().expect("a folder");
        let storage = Storage::folder(folder.path()).expect("a storage");
        storage.put("a/one.png", Bytes::from_static(b"one")).await.expect("stored");
        let read = async |path, size: u64| storage.read(path, size..=size).await.expect("an answer");
        assert_eq!(read("a/one.png", 3).await.as_deref(), Some(&b"one"[..]));
        assert_eq!(read("a/one.png", 4).await, None);
        assert_eq!(read("a/two.png", 3).await, None);
        assert!(storage.copy_new("a/one.png", "b/two.png", Bytes::from_static(b"one")).await.expect("copied"));
        assert_eq!(read("b/two.png", 3).await.as_deref(), Some(&b"one"[..]));
        let inode = |path| std::fs::metadata(folder.path().join(path)).expect("a file").ino();
        assert_eq!(inode("a/one.png"), inode("b/two.png"));
        // What is stored later under the one path does not change the other.
        storage.put("a/one.png", Bytes::from_static(b"new")).await.expect("stored");
        assert_eq!(read("b/two.png", 3).await.as_deref(), Some(&b"one"[..]));
        // Where there is nothing to link to, the bytes are stored.
        assert!(storage.copy_new("a/gone.png", "b/three.png", Bytes::from_static(b"three")).await.expect("stored"));
        assert_eq!(read("b/three.png", 5).await.as_deref(), Some(&b"three"[..]));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("file"), b"x").expect("a file");
        let error = Storage::folder(&folder.path().join("file/below")).err().expect("a file is no folder");
        assert!(error.to_string().contains("storage cannot open"), "{error}");
    }
}
