//! Python environments with packages from `PyPI`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::services::install::install_package;
use crate::{print_status, programs};

/// Returns the Python interpreter of an environment with these packages, such as `celery==5.7.0`. Creates the
/// environment below the target folder if it does not exist; installs Debian's Python if there is none. Blocks.
///
/// # Errors
///
/// If Python or a package cannot be installed.
pub fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = programs::target_folder()?.join("tools").join(format!("python-{name}"));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // One process at a time creates it.
    let lock = File::create(folder.join("lock"))?;
    lock.lock().context("cannot lock the Python environment")?;
    let (installed, python) = (folder.join("installed"), folder.join("venv/bin/python"));
    let wanted = packages.join("\n");
    if fs::read_to_string(&installed).is_ok_and(|packages| packages == wanted) && python.is_file() {
        return Ok(python);
    }
    print_status(&format!("installing {} with pip", packages.join(", ")));
    create_venv(&folder.join("venv"))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
    run(Command::new(&python).args(pip).args(packages))?;
    fs::write(&installed, wanted)?;
    Ok(python)
}

fn create_venv(folder: &Path) -> Result<()> {
    let create = |python: &str| run(Command::new(python).args(["-m", "venv", "--clear"]).arg(folder));
    create("python3").or_else(|_| {
        install_package("python3-venv")?;
        create("/usr/bin/python3")
    })
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
