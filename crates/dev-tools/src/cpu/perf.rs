//! Recordings of a process by `perf`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A recording of `perf` and its file.
#[derive(Debug)]
pub(super) struct Recording {
    folder: TempDir,
    arguments: Vec<String>,
}

/// Observes a process until it is dropped.
#[derive(Debug)]
pub(super) struct Attached(Child);

impl Recording {
    /// Samples the running function a thousand times a second of CPU time.
    ///
    /// # Errors
    ///
    /// If `perf` cannot be run.
    pub(super) fn sampling() -> Result<Self> {
        // The clock of the kernel works on virtual machines, which often have no hardware counters.
        Self::new("record", &["--quiet", "--event", "cpu-clock", "--freq", "997"])
    }

    /// Counts these events.
    ///
    /// # Errors
    ///
    /// If `perf` cannot be run.
    pub(super) fn counting(events: &[&str]) -> Result<Self> {
        Self::new("stat", &["--field-separator", ",", "--event", &events.join(",")])
    }

    fn new(subcommand: &str, options: &[&str]) -> Result<Self> {
        let version = Command::new("perf").arg("--version").stdout(Stdio::null()).status();
        ensure!(version.is_ok_and(|status| status.success()), "a profile needs `perf`, Debian's package linux-perf");
        let arguments = [subcommand].iter().chain(options).map(ToString::to_string).collect();
        Ok(Self { folder: tempfile::tempdir()?, arguments })
    }

    pub(super) fn file(&self) -> PathBuf {
        self.folder.path().join("perf.data")
    }

    /// Observes a process from now on.
    ///
    /// # Errors
    ///
    /// If `perf` cannot be started.
    pub(super) fn attach(&self, pid: u32) -> Result<Attached> {
        let mut command = Command::new("perf");
        command.args(&self.arguments).args(["--pid", &pid.to_string(), "--output"]).arg(self.file());
        Ok(Attached(command.stdin(Stdio::null()).spawn().context("perf cannot be started")?))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(self.0.id()).unwrap_or_default()) {
            // `perf` writes its file when it is interrupted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.0.wait();
    }
}
