//! Prometheus's programs, wherever they can be had.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::{PROMETHEUS, install};
use crate::variable;

/// A folder that has both.
fn find() -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    folders.into_iter().find(|folder| has_both(folder))
}

fn has_both(folder: &Path) -> bool {
    ["prometheus", "promtool"].iter().all(|program| folder.join(program).is_file())
}

/// The folder of `prometheus` and `promtool`, installed first if need be.
///
/// # Errors
///
/// A sentence that says how to get them.
pub fn programs() -> Result<PathBuf> {
    if let Some(given) = variable(PROMETHEUS) {
        return Ok(given.into());
    }
    if let Some(found) = find() {
        return Ok(found);
    }
    let installed = install::package("prometheus").and_then(|()| find().context("it is not where it was looked for"));
    installed.map_err(|not_installed| {
        anyhow!("Prometheus is needed: set {PROMETHEUS} to the folder of its programs, or install the package prometheus ({not_installed:#})")
    })
}
