//! Installing Debian packages, where we may.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::say;

/// Asked by Debian's packages before they start the service they bring.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs a package with apt, without starting its service: a server of our own is started later, on private ports.
pub(super) async fn package(name: &str) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").is_file() {
        bail!("this system has no apt-get");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("only root may install packages");
    }
    say(&format!("installing the package {name} with apt-get"));
    let _no_services = NoServices::declare()?;
    apt(&["update", "-qq"]).await?;
    apt(&["install", "-y", "-qq", "--no-install-recommends", name]).await
}

async fn apt(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .kill_on_drop(true)
        .output()
        .await
        .context("apt-get cannot be started")?;
    if !output.status.success() {
        bail!("apt-get {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// While it lives, packages start no services. A policy that stands there already is left alone.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn declare() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
            .with_context(|| format!("cannot write {POLICY}"))?;
        file.write_all(b"#!/bin/sh\nexit 101\n")?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            // Where it cannot be removed now, root could not write it a moment ago either.
            let _ = std::fs::remove_file(POLICY);
        }
    }
}
