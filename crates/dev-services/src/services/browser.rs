//! Finds the browser that tests drive, or installs it.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

use super::{CHROMEDRIVER_VAR, install};
use crate::env_var;

/// Returns the program `chromedriver`, which starts Chromium; installs Debian's packages of both first if it is missing.
///
/// # Errors
///
/// If it is unavailable; the message says how to provide it.
pub fn chromedriver() -> Result<PathBuf> {
    if let Some(given) = env_var(CHROMEDRIVER_VAR) {
        return Ok(given.into());
    }
    if let Some(found) = find() {
        return Ok(found);
    }
    let installed = install::install_package("chromium-driver")
        .and_then(|()| find().context("its program was not found after the installation"));
    installed.map_err(|not_installed| {
        anyhow!("a browser is needed: set {CHROMEDRIVER_VAR} to the program chromedriver, or install the package chromium-driver ({not_installed:#})")
    })
}

fn find() -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    folders.into_iter().map(|folder| folder.join("chromedriver")).find(|program| program.is_file())
}
