//! Smaller copies of images, cached in a folder of bounded size.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use domain::image_spec::ImageDefect;
use picture::CopyFormat;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::warn;
use uuid::Uuid;

use crate::image_pool::ImagePool;

/// Copies that are made at the same time: each holds a decoded image.
const MAX_IN_PROGRESS: usize = 4;

/// Makes and caches copies.
pub(super) struct ImageCopies {
    pool: ImagePool,
    turns: Semaphore,
    /// `None` if copies are not cached.
    cache: Option<Arc<Cache>>,
}

/// Which copy of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopyKey<'a> {
    /// SHA-256 of the image's file.
    pub(super) sha256: &'a str,
    pub(super) width: u32,
    pub(super) format: CopyFormat,
}

impl CopyKey<'_> {
    /// Name of the cached file.
    fn file_name(self) -> String {
        let extension = match self.format {
            CopyFormat::Jpeg => "jpg",
            CopyFormat::Webp => "webp",
        };
        format!("{}-{}.{extension}", self.sha256, self.width)
    }
}

impl ImageCopies {
    /// Copies are cached in `folder`, in at most `max_bytes`; 0: none is cached. Files from an earlier run are used.
    pub(super) async fn open(pool: ImagePool, folder: &Path, max_bytes: u64) -> Self {
        let turns = Semaphore::new(MAX_IN_PROGRESS);
        if max_bytes == 0 {
            return Self { pool, turns, cache: None };
        }
        let owned = folder.to_owned();
        let opened = spawn_blocking(move || Cache::open(owned, max_bytes)).await.map_err(io::Error::other);
        let cache = match opened.and_then(|opened| opened) {
            Ok(cache) => Some(Arc::new(cache)),
            Err(error) => {
                warn!(folder = %folder.display(), %error, "API_CACHE_DIR cannot be used; copies of images are not cached");
                None
            }
        };
        Self { pool, turns, cache }
    }

    /// The copy, from the cache, or made from the file that `read` returns. `None` if `read` returns none.
    ///
    /// # Errors
    ///
    /// The error of `read`, or [`ImageDefect`] if the file is damaged.
    pub(super) async fn get<E: From<ImageDefect>>(
        &self,
        key: CopyKey<'_>,
        read: impl AsyncFnOnce() -> Result<Option<Bytes>, E>,
    ) -> Result<Option<Bytes>, E> {
        let name = key.file_name();
        if let Some(copy) = self.read_cached(&name).await {
            return Ok(Some(copy));
        }
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        // Another call may have made it meanwhile.
        if let Some(copy) = self.read_cached(&name).await {
            return Ok(Some(copy));
        }
        let Some(file) = read().await? else { return Ok(None) };
        let copy = self.pool.make_copy(file, key.width, key.format).await?;
        if let Some(cache) = self.cache.clone() {
            let stored = copy.clone();
            // An error only means that the copy is made again.
            let _ = spawn_blocking(move || cache.put(&name, &stored)).await;
        }
        Ok(Some(copy))
    }

    async fn read_cached(&self, name: &str) -> Option<Bytes> {
        let (cache, name) = (self.cache.clone()?, name.to_owned());
        spawn_blocking(move || cache.get(&name)).await.ok().flatten()
    }
}

/// Files in a folder; the least recently used ones are removed when it is full.
struct Cache {
    folder: PathBuf,
    max_bytes: u64,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    files: HashMap<String, CachedFile>,
    total_bytes: u64,
    /// Grows with each use.
    clock: u64,
}

struct CachedFile {
    size: u64,
    used: u64,
}

impl Cache {
    fn open(folder: PathBuf, max_bytes: u64) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let (name, metadata) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata()?);
            if !metadata.is_file() {
                continue;
            }
            if name.starts_with(TEMPORARY) {
                // Of a process that was killed.
                std::fs::remove_file(entry.path())?;
            } else if is_copy_name(&name) {
                found.push((metadata.modified()?, name, metadata.len()));
            }
        }
        found.sort();
        let mut index = Index::default();
        for (_, name, size) in found {
            index.insert(name, size);
        }
        let cache = Self { folder, max_bytes, index: Mutex::new(index) };
        cache.remove_surplus();
        // Found out now, not with each copy.
        let probe = cache.temporary_path();
        std::fs::write(&probe, b"")?;
        std::fs::remove_file(&probe)?;
        Ok(cache)
    }

    fn get(&self, name: &str) -> Option<Bytes> {
        {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.clock += 1;
            let clock = index.clock;
            index.files.get_mut(name)?.used = clock;
        }
        let read = std::fs::read(self.folder.join(name)).ok();
        if read.is_none() {
            // It was removed by another program.
            self.index.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
        read.map(Bytes::from)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.temporary_path();
        let written =
            std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, self.folder.join(name)));
        if written.is_err() {
            // It may not exist.
            let _ = std::fs::remove_file(&temporary);
        }
        written?;
        self.index.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), bytes.len() as u64);
        self.remove_surplus();
        Ok(())
    }

    fn remove_surplus(&self) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        while index.total_bytes > self.max_bytes {
            let oldest = index.files.iter().min_by_key(|(_, file)| file.used).map(|(name, _)| name.clone());
            let Some(name) = oldest else { return };
            index.remove(&name);
            // A file that stays is found by the next start.
            let _ = std::fs::remove_file(self.folder.join(&name));
        }
    }

    fn temporary_path(&self) -> PathBuf {
        self.folder.join(format!("{TEMPORARY}{}", Uuid::now_v7().simple()))
    }
}

/// Prefix of files that are being written.
const TEMPORARY: &str = "writing-";

/// Whether a file in the folder is a copy: other files are left alone.
fn is_copy_name(name: &str) -> bool {
    let Some((sha256, rest)) = name.split_once('-') else { return false };
    let is_hash = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash && matches!(rest.rsplit_once('.'), Some((_, "jpg" | "webp")))
}

impl Index {
    fn insert(&mut self, name: String, size: u64) {
        self.clock += 1;
        let file = CachedFile { size, used: self.clock };
        self.total_bytes += size;
        if let Some(replaced) = self.files.insert(name, file) {
            self.total_bytes -= replaced.size;
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(removed) = self.files.remove(name) {
            self.total_bytes -= removed.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(digit: char) -> String {
        format!("{}-100.jpg", digit.to_string().repeat(64))
    }

    #[test]
    fn least_recently_used_copies_are_removed_when_the_cache_is_full() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = Cache::open(folder.path().join("cache"), 25).expect("the cache opens");
        for digit in ['a', 'b'] {
            cache.put(&name(digit), &[0; 10]).expect("stored");
        }
        assert!(cache.get(&name('a')).is_some());
        cache.put(&name('c'), &[0; 10]).expect("stored");
        assert_eq!(['a', 'b', 'c'].map(|digit| cache.get(&name(digit)).is_some()), [true, false, true]);
        // The same file again does not count twice, and one that is too large is not kept.
        cache.put(&name('c'), &[0; 10]).expect("stored");
        cache.put(&name('d'), &[0; 30]).expect("stored");
        let left = std::fs::read_dir(folder.path().join("cache")).expect("a folder").count();
        assert_eq!((cache.get(&name('d')), left), (None, 0));
    }

    #[test]
    fn copies_of_an_earlier_run_are_used_and_other_files_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in [&name('a'), &name('b'), "notes.txt", "writing-1"] {
            std::fs::write(folder.path().join(file), [0; 10]).expect("a file");
        }
        let cache = Cache::open(folder.path().to_owned(), 10).expect("the cache opens");
        let kept = ['a', 'b'].iter().filter(|digit| cache.get(&name(**digit)).is_some()).count();
        let left = std::fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!((kept, left), (1, 2));
        assert!(folder.path().join("notes.txt").exists());
    }
}
