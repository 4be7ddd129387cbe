//! Folders with packages from npm.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::services::install::install_package;
use crate::tool_folder::{self, run};

/// Returns a folder whose `node_modules` holds these packages, such as `cloudevents@10.0.0`. Creates it below the target
/// folder if it does not exist; installs Debian's Node.js if there is none. Blocks.
///
/// # Errors
///
/// If Node.js or a package cannot be installed.
pub fn environment(name: &str, packages: &[&str]) -> Result<PathBuf> {
    tool_folder::prepare(&format!("node-{name}"), packages, |folder| {
        if run(Command::new("npm").arg("--version")).is_err() {
            install_package("npm")?;
        }
        // With this file, npm installs into the folder and not into one above it.
        fs::write(folder.join("package.json"), "{\"private\": true}\n")?;
        let install = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact"];
        run(Command::new("npm").current_dir(folder).args(install).args(packages))
    })
}
