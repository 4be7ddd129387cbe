//! Prometheus's programs, wherever they can be had.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::{PROMETHEUS_VAR, install};
use crate::variable;

/// A folder that has both.
fn find_programs() -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    folders.into_iter().find(|folder| has_programs(folder))
}

fn has_programs(folder: &Path) -> bool {
    ["prometheus", "promtool"].iter().all(|program| folder.join(program).is_file())
}

/// The folder of `prometheus` and `promtool`, installed first if need be.
///
/// # Errors
///
/// A sentence that says how to get them.
pub fn programs() -> Result<PathBuf> {
    if let Some(given) = variable(PROMETHEUS_VAR) {
        return Ok(given.into());
    }
    if let Some(found) = find_programs() {
        return Ok(found);
    }
    let installed = install::install_package("prometheus")
        .and_then(|()| find_programs().context("it is not where it was looked for"));
    installed.map_err(|not_installed| {
        anyhow!("Prometheus is needed: set {PROMETHEUS_VAR} to the folder of its programs, or install the package prometheus ({not_installed:#})")
    })
}
