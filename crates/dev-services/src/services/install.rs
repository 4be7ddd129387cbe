//! Installation of Debian packages, which requires root.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::print_status;

/// Script that Debian's packages run before they start their service.
const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";
/// Content of the script that forbids service starts. If a killed run leaves it behind, the next run recognises and
/// removes it.
const DENY_SERVICE_STARTS: &[u8] = b"#!/bin/sh\n# dev-services: while it installs packages\nexit 101\n";
/// Waits up to 300 seconds for another installation, which may be running on a machine that has just booted.
const LOCK_TIMEOUT_OPTION: &str = "DPkg::Lock::Timeout=300";

/// Installs a package with apt without starting its service: a private server is started later, on private ports.
///
/// Blocks on purpose: signals are handled after the installation, so that no package is left half-installed.
pub(super) fn install_package(name: &str) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").is_file() {
        bail!("this system has no apt-get");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("only root may install packages");
    }
    print_status(&format!("installing the package {name} with apt-get"));
    let _service_start_block = ServiceStartBlock::create()?;
    if let Err(error) = run_apt_get(&["update", "-qq"]) {
        // The source that failed may not be the one that has the package.
        print_status(&format!("{error:#}"));
    }
    run_apt_get(&["install", "-y", "-qq", "--no-install-recommends", name])
}

fn run_apt_get(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(["-o", LOCK_TIMEOUT_OPTION])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Ctrl-C must not interrupt apt-get.
        .process_group(0)
        .output()
        .context("cannot start apt-get")?;
    if !output.status.success() {
        bail!("apt-get {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Prevents packages from starting services until it is dropped. An existing policy is left unchanged.
struct ServiceStartBlock {
    is_ours: bool,
}

impl ServiceStartBlock {
    fn create() -> Result<Self> {
        if let Ok(policy) = std::fs::read(POLICY_FILE) {
            return Ok(Self { is_ours: policy == DENY_SERVICE_STARTS });
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY_FILE)
            .with_context(|| format!("cannot write {POLICY_FILE}"))?;
        file.write_all(DENY_SERVICE_STARTS)?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for ServiceStartBlock {
    fn drop(&mut self) {
        if self.is_ours {
            // Root was able to write the file, so removing it is not expected to fail.
            let _ = std::fs::remove_file(POLICY_FILE);
        }
    }
}
