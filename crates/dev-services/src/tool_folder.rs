//! Folders below `target/tools` that are filled once, with packages that tests need.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{print_status, programs};

/// Returns the folder of this name, and fills it if it does not hold these packages yet. One process at a time fills it.
pub(crate) fn prepare(name: &str, packages: &[&str], fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = programs::target_folder()?.join("tools").join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;
    let (installed, wanted) = (folder.join("installed"), packages.join("\n"));
    if fs::read_to_string(&installed).is_ok_and(|packages| packages == wanted) {
        return Ok(folder);
    }
    print_status(&format!("installing {} into {name}", packages.join(", ")));
    fill(&folder)?;
    fs::write(&installed, wanted)?;
    Ok(folder)
}

/// Runs a command to its end.
///
/// # Errors
///
/// If it cannot be started or fails; with what it wrote to standard error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
