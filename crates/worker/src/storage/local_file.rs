//! Writes files of a local storage past the page cache of the system.
//!
//! The worker does not read its files again, and a copy of each into the page cache is the largest cost of storing it.
//! Where a file system does not support this (`O_DIRECT`), files are written through the page cache.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use object_store::PutMode;

/// Alignment, in bytes, that file systems require of memory, offset and length at most. Source: open(2), `O_DIRECT`.
const BLOCK_BYTES: usize = 4_096;
/// Size of one write.
const CHUNK_BYTES: usize = 1024 * 1024;

#[cfg(target_os = "linux")]
const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();
#[cfg(not(target_os = "linux"))]
const DIRECT: i32 = 0;

/// Stores a file with these bytes. The file is durable on return; after an error nothing of it is visible.
///
/// # Errors
///
/// [`ErrorKind::AlreadyExists`] if the path is taken and the mode is [`PutMode::Create`], and any error of the system.
pub(super) fn put(path: &Path, bytes: &[u8], mode: &PutMode) -> io::Result<()> {
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    create_folder(folder)?;
    let temporary_file = match write_temporary_file(path, bytes, DIRECT) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => write_temporary_file(path, bytes, 0)?,
        written => written?,
    };
    let published = match mode {
        PutMode::Create => std::fs::hard_link(&temporary_file, path),
        PutMode::Overwrite | PutMode::Update(_) => std::fs::rename(&temporary_file, path),
    };
    // After a rename, a file of this name belongs to another writer.
    if published.is_err() || matches!(mode, PutMode::Create) {
        let _ = std::fs::remove_file(&temporary_file);
    }
    published.and_then(|()| sync_folder(folder))
}

/// The temporary file number `number`, from 1, of a path.
pub(super) fn temporary_path(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("#{number}"));
    name.into()
}

/// Writes the bytes durably into a new file next to the path, and returns that file.
fn write_temporary_file(path: &Path, bytes: &[u8], flags: i32) -> io::Result<PathBuf> {
    let (file, temporary_file) = create_temporary_file(path, flags)?;
    let written = if flags == 0 { file.write_all_at(bytes, 0) } else { write_blocks(&file, bytes) };
    match written.and_then(|()| file.sync_all()) {
        Ok(()) => Ok(temporary_file),
        Err(error) => {
            let _ = std::fs::remove_file(temporary_file);
            Err(error)
        }
    }
}

fn create_temporary_file(path: &Path, flags: i32) -> io::Result<(File, PathBuf)> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).custom_flags(flags);
    for number in 1.. {
        let candidate = temporary_path(path, number);
        match options.open(&candidate) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            // Some file systems create the file before they refuse the flags.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                let _ = std::fs::remove_file(candidate);
                return Err(error);
            }
            opened => return opened.map(|file| (file, candidate)),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Writes whole blocks from aligned memory, and then cuts the file to its length.
fn write_blocks(file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut memory = vec![0; CHUNK_BYTES.min(bytes.len().next_multiple_of(BLOCK_BYTES)) + BLOCK_BYTES];
    let start = memory.as_ptr().align_offset(BLOCK_BYTES);
    let aligned = memory.get_mut(start..).ok_or(ErrorKind::InvalidInput)?;
    let mut offset = 0;
    for chunk in bytes.chunks(CHUNK_BYTES) {
        let block = &mut aligned[..chunk.len().next_multiple_of(BLOCK_BYTES)];
        block[..chunk.len()].copy_from_slice(chunk);
        block[chunk.len()..].fill(0);
        file.write_all_at(block, offset)?;
        offset += block.len() as u64;
    }
    file.set_len(bytes.len() as u64)
}

/// Creates a folder and those above it that are missing, durably.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().ok_or(ErrorKind::InvalidInput)?;
    create_folder(above)?;
    match std::fs::create_dir(folder) {
        // Another writer was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
        created => created?,
    }
    sync_folder(above)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files_in(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            folder.read_dir().expect("a folder").map(|file| file.expect("a file").file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_of_any_length_are_written_whole_with_and_without_direct_access() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("image.png");
        for length in [0, 1, 4_095, 4_096, 4_097, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5_000_000] {
            let bytes: Vec<u8> = (0..length).map(|position| u8::try_from(position % 251).unwrap_or(0)).collect();
            for flags in [0, DIRECT] {
                let written = match write_temporary_file(&path, &bytes, flags) {
                    // The file system of the temporary folder does not support direct access.
                    Err(error) if flags == DIRECT && error.kind() == ErrorKind::InvalidInput => continue,
                    written => written.expect("the file is written"),
                };
                assert!(std::fs::read(&written).expect("the file is read") == bytes, "{length} bytes, flags {flags}");
                std::fs::remove_file(written).expect("the file is removed");
            }
            put(&path, &bytes, &PutMode::Overwrite).expect("the file is stored");
            assert!(std::fs::read(&path).expect("the file is read") == bytes, "{length} bytes");
        }
        assert_eq!(files_in(folder.path()), ["image.png"]);
    }

    #[test]
    fn taken_path_is_kept_and_temporary_files_of_others_too() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a/b/image.png");
        put(&path, b"one", &PutMode::Create).expect("the file and its folders are created");
        std::fs::write(temporary_path(&path, 1), "of another writer").expect("a file");
        let refused = put(&path, b"two", &PutMode::Create).expect_err("the path is taken");
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).expect("the file is read"), b"one");
        put(&path, b"two", &PutMode::Overwrite).expect("the file is replaced");
        assert_eq!(std::fs::read(&path).expect("the file is read"), b"two");
        assert_eq!(files_in(path.parent().expect("a folder")), ["image.png", "image.png#1"]);
    }

    #[test]
    fn failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // A folder that is not empty cannot be replaced by a file.
        let path = folder.path().join("image.png");
        std::fs::create_dir_all(path.join("below")).expect("a folder");
        put(&path, b"one", &PutMode::Overwrite).expect_err("the path is a folder");
        put(&path.join("below/file"), b"one", &PutMode::Create).expect("stored");
        put(&path.join("below/file/image.png"), b"one", &PutMode::Create).expect_err("a file is no folder");
        assert_eq!(files_in(folder.path()), ["image.png"]);
        assert_eq!(files_in(&path.join("below")), ["file"]);
    }
}
