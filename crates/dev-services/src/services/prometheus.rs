//! Finds the programs of Prometheus, or installs them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::{PROMETHEUS_VAR, install};
use crate::env_var;

/// Finds a folder with both programs.
fn find_programs() -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    folders.into_iter().find(|folder| has_programs(folder))
}

fn has_programs(folder: &Path) -> bool {
    ["prometheus", "promtool"].iter().all(|program| folder.join(program).is_file())
}

/// Returns the folder of `prometheus` and `promtool`; installs them first if they are missing.
///
/// # Errors
///
/// If they are unavailable; the message says how to provide them.
pub fn programs() -> Result<PathBuf> {
    if let Some(given) = env_var(PROMETHEUS_VAR) {
        return Ok(given.into());
    }
    if let Some(found) = find_programs() {
        return Ok(found);
    }
    let installed = install::install_package("prometheus")
        .and_then(|()| find_programs().context("its programs were not found after the installation"));
    installed.map_err(|not_installed| {
        anyhow!("Prometheus is needed: set {PROMETHEUS_VAR} to the folder of its programs, or install the package prometheus ({not_installed:#})")
    })
}
