//! Processes that do not outlive us.

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

/// Of util-linux, on every Debian and Ubuntu.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A process in a process group of its own. Dropping it kills the whole group.
pub struct Process {
    name: String,
    child: Child,
    group: Option<Pid>,
}

impl Process {
    /// Starts a program whose output goes where the command says.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        let child =
            command.process_group(0).kill_on_drop(true).spawn().with_context(|| format!("cannot start {name}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { name: name.to_owned(), child, group })
    }

    /// Starts a program whose output goes to a file.
    ///
    /// # Errors
    ///
    /// Where it cannot be started, or the file cannot be made.
    pub fn start_logged(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        // Behind what an earlier life of the same server has said.
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Self::start(name, command)
    }

    /// Its number, while it is there.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Looks at a condition until it gives a value.
    ///
    /// # Errors
    ///
    /// Where it has given none within `limit`, or the process has ended.
    pub async fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T> {
        wait_until(what, limit, async || match look().await {
            Some(value) => Some(Ok(value)),
            None if self.is_running() => None,
            None => Some(Err(anyhow!("{} has ended before {what}", self.name))),
        })
        .await?
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It fails only where the group is gone.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// Where the system cannot tell.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("cannot wait for {}", self.name))
    }

    /// As [`Process::stop`], where nothing can be awaited.
    pub fn stop_blocking(&mut self, signal: Signal, grace: Duration) {
        self.signal(signal);
        let deadline = std::time::Instant::now() + grace;
        while self.is_running() && std::time::Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.signal(Signal::KILL);
    }

    /// Sends a signal and waits; what is left of the group after the grace is killed.
    pub async fn stop(mut self, signal: Signal, grace: Duration) {
        self.signal(signal);
        // Either it ended, or dropping it ends it.
        let _ = timeout(grace, self.child.wait()).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// A command that gets this signal (its name without `SIG`) when we die, however we die. Where the system has no `setpriv`, it is a plain command, and
/// outlives a SIGKILL of ours.
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

/// As [`bound_to_us`], run by another user, which only root may ask for.
///
/// # Errors
///
/// Where the system has no `setpriv`.
pub fn command_as_user(user: &str, program: &Path, signal: &str) -> Result<Command> {
    let setpriv = find(&[SETPRIV]).with_context(|| format!("{SETPRIV} is needed to start {}", program.display()))?;
    let mut command = Command::new(setpriv);
    command.args(["--reuid", user, "--regid", user, "--init-groups"]);
    command.args(["--pdeathsig", signal]).arg(program);
    Ok(command)
}

/// The first of these files that exists.
pub fn find(candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The end of a log, to be shown with a failure.
pub fn log_tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
