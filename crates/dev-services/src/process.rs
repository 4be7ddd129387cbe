//! Child processes that do not outlive this process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::wait::wait_until;

pub use rustix::process::Signal;

/// Part of util-linux, which every Debian and Ubuntu has.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A child process in its own process group; dropping it kills the whole group.
pub struct Process {
    name: String,
    child: Child,
    group: Option<Pid>,
}

impl Process {
    /// Starts a program; its output goes where the command directs it.
    ///
    /// # Errors
    ///
    /// If the program cannot be started.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        let child =
            command.process_group(0).kill_on_drop(true).spawn().with_context(|| format!("cannot start {name}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { name: name.to_owned(), child, group })
    }

    /// Starts a program and appends its output to a file.
    ///
    /// # Errors
    ///
    /// If the program cannot be started or the file cannot be created.
    pub fn start_logged(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        // Appended, to keep the output of an earlier run of the same server.
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Self::start(name, command)
    }

    /// Returns the process id, or none after the process has been waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether the process is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Polls a condition until it returns a value.
    ///
    /// # Errors
    ///
    /// If it returns none within `limit`, or the process exits first.
    pub async fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T> {
        wait_until(what, limit, async || match look().await {
            Some(value) => Some(Ok(value)),
            None if self.is_running() => None,
            None => Some(Err(anyhow!("{} exited during the wait for {what}", self.name))),
        })
        .await?
    }

    /// Sends a signal to the whole process group.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // Fails only if the group no longer exists.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits until the process exits.
    ///
    /// # Errors
    ///
    /// If the system cannot report the exit status.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Like [`Process::stop`], for code that cannot await.
    pub fn stop_blocking(&mut self, signal: Signal, grace: Duration) {
        self.signal(signal);
        let deadline = std::time::Instant::now() + grace;
        while self.is_running() && std::time::Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.signal(Signal::KILL);
    }

    /// Sends a signal and waits up to `grace` for the exit; then the rest of the group is killed.
    pub async fn stop(mut self, signal: Signal, grace: Duration) {
        self.signal(signal);
        // If it has not exited, dropping it kills it.
        let _ = timeout(grace, self.child.wait()).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Returns a command that receives `signal` (its name without `SIG`) when this process ends, even by SIGKILL.
///
/// If the system has no `setpriv`, it is a plain command, which outlives this process after a SIGKILL.
pub fn command_with_death_signal(program: &Path, signal: &str) -> Command {
    match find(&[SETPRIV]) {
        None => Command::new(program),
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal]).arg(program);
            command
        }
    }
}

/// Like [`command_with_death_signal`], but runs as another user, which requires root.
///
/// # Errors
///
/// If the system has no `setpriv`.
pub fn command_as_user(user: &str, program: &Path, signal: &str) -> Result<Command> {
    let setpriv = find(&[SETPRIV]).with_context(|| format!("{SETPRIV} is needed to start {}", program.display()))?;
    let mut command = Command::new(setpriv);
    command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    command.args(["--pdeathsig", signal]).arg(program);
    Ok(command)
}

/// Returns the first of these files that exists.
pub fn find(candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Returns the last 15 lines of a log file, to be shown with an error; empty if it cannot be read.
pub fn log_tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
