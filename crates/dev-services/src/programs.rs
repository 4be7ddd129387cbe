//! Paths of the workspace's built programs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Returns the folder of this build's programs, such as `target/debug`.
///
/// # Errors
///
/// If the path of the running program is unknown.
pub fn folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of this program is unknown")?;
    let folder = own.parent().unwrap_or(Path::new("."));
    // Test programs are one level deeper.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}

/// Returns the path of a built program, such as `asset-worker`.
///
/// # Errors
///
/// If it has not been built.
pub fn find(name: &str) -> Result<PathBuf> {
    let program = folder()?.join(name);
    if !program.is_file() {
        bail!("{} is missing; build it with: make build", program.display());
    }
    Ok(program)
}

/// Returns the build's `target` folder.
///
/// # Errors
///
/// As [`folder`].
pub fn target_folder() -> Result<PathBuf> {
    let folder = folder()?;
    Ok(folder.parent().map_or(folder.clone(), Path::to_owned))
}
