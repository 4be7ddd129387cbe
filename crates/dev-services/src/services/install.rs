//! Installing Debian packages, where we may.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::print_status;

/// Asked by Debian's packages before they start the service they bring.
const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";
/// Ours: no service is started. If a kill of ours leaves it behind, the next run knows it and removes it.
const DENY_SERVICE_STARTS: &[u8] = b"#!/bin/sh\n# dev-services: while it installs packages\nexit 101\n";
/// Other installations may be under way, as on a machine that has just been started.
const LOCK_TIMEOUT_OPTION: &str = "DPkg::Lock::Timeout=300";

/// Installs a package with apt, without starting its service: a server of our own is started later, on private ports.
///
/// Blocks, on purpose: a signal is heeded when it is over, since a half-installed package would be everybody's trouble.
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
        // A broken source need not be the one that has the package.
        print_status(&format!("{error:#}"));
    }
    run_apt_get(&["install", "-y", "-qq", "--no-install-recommends", name])
}

fn run_apt_get(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(["-o", LOCK_TIMEOUT_OPTION])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // A Ctrl-C is for us, not for it.
        .process_group(0)
        .output()
        .context("apt-get cannot be started")?;
    if !output.status.success() {
        bail!("apt-get {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// While it lives, packages start no services. A policy that stands there already is left alone.
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
            // Where it cannot be removed now, root could not write it a moment ago either.
            let _ = std::fs::remove_file(POLICY_FILE);
        }
    }
}
