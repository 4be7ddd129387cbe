//! Python environments with packages from `PyPI`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::services::install::install_package;
use crate::tool_folder::{self, run};

/// Returns the Python interpreter of an environment with these packages, such as `celery==5.7.0`. Creates the
/// environment below the target folder if it does not exist; installs Debian's Python if there is none. Blocks.
///
/// # Errors
///
/// If Python or a package cannot be installed.
pub fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let python = |folder: &Path| folder.join("venv/bin/python");
    let folder = tool_folder::prepare(&format!("python-{name}"), packages, |folder| {
        create_venv(&folder.join("venv"))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
        run(Command::new(python(folder)).args(pip).args(packages))
    })?;
    Ok(python(&folder))
}

fn create_venv(folder: &Path) -> Result<()> {
    let create = |python: &str| run(Command::new(python).args(["-m", "venv", "--clear"]).arg(folder));
    create("python3").or_else(|_| {
        install_package("python3-venv")?;
        create("/usr/bin/python3")
    })
}
