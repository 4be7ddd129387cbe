//! Installation of Debian packages, which requires root.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

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
pub(crate) fn install_package(name: &str) -> Result<()> {
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

/// Runs apt-get and shows its progress.
fn run_apt_get(arguments: &[&str]) -> Result<()> {
    let mut child = Command::new("apt-get")
        // Writes a line such as `dlstatus:3:41.2:Retrieving file 3 of 7` for each step to standard output.
        .args(["-o", LOCK_TIMEOUT_OPTION, "-o", "APT::Status-Fd=1"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Ctrl-C must not interrupt apt-get.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start apt-get")?;
    let mut stderr = child.stderr.take().context("apt-get has no standard error")?;
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes)
    });
    let mut progress = Progress::default();
    for line in BufReader::new(child.stdout.take().context("apt-get has no standard output")?).split(b'\n') {
        progress.show(&String::from_utf8_lossy(&line.context("cannot read the output of apt-get")?));
    }
    progress.finish();
    let status = child.wait().context("cannot wait for apt-get")?;
    let errors = errors.join().ok().and_then(Result::ok).unwrap_or_default();
    if !status.success() {
        bail!("apt-get {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&errors).trim());
    }
    Ok(())
}

/// Shows the progress of apt-get: on a terminal in one line that changes, elsewhere in a line for each quarter.
#[derive(Default)]
struct Progress {
    quarter: u8,
    line_is_open: bool,
}

impl Progress {
    #[expect(clippy::print_stderr, reason = "a developer tool prints its progress")]
    fn show(&mut self, status_line: &str) {
        let Some((step, percent, what)) = parse_status(status_line) else { return };
        if std::io::stderr().is_terminal() {
            let what: String = what.chars().take(60).collect();
            eprint!("\r\x1b[K  {step} {percent:3}%  {what}");
            self.line_is_open = true;
        } else if percent / 25 > self.quarter || percent < self.quarter * 25 {
            self.quarter = percent / 25;
            print_status(&format!("{step} {percent}%"));
        }
    }

    #[expect(clippy::print_stderr, reason = "a developer tool prints its progress")]
    fn finish(&mut self) {
        if self.line_is_open {
            eprint!("\r\x1b[K");
        }
    }
}

/// Parses a status line of apt-get into the step, its progress in percent, and its description.
fn parse_status(line: &str) -> Option<(&'static str, u8, &str)> {
    let mut fields = line.splitn(4, ':');
    let step = match fields.next()? {
        "dlstatus" => "downloading",
        "pmstatus" => "installing",
        _ => return None,
    };
    let percent: f32 = fields.nth(1)?.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage")]
    let percent = percent.clamp(0.0, 100.0) as u8;
    Some((step, percent, fields.next()?.trim()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_of_apt_get_are_parsed() {
        for (line, expected) in [
            (
                "dlstatus:3:41.26:Retrieving file 3 of 7 (12s remaining)",
                Some(("downloading", 41, "Retrieving file 3 of 7 (12s remaining)")),
            ),
            (
                "pmstatus:erlang-base:12.5:Unpacking erlang-base (amd64)",
                Some(("installing", 12, "Unpacking erlang-base (amd64)")),
            ),
            ("pmstatus:dpkg-exec:100:", Some(("installing", 100, ""))),
            ("Setting up erlang-base (1:25.2.3) ...", None),
            ("pmconffile:x:1:y", None),
            ("dlstatus:1:much:file", None),
        ] {
            assert_eq!(parse_status(line), expected, "{line}");
        }
    }
}
