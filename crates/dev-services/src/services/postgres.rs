//! A private PostgreSQL server, started from installed binaries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use uuid::Uuid;

use super::{Postgres, ServiceHandle};
use crate::process::{Process, Signal, command_as_user, command_with_death_signal, log_tail};
use crate::wait::free_addresses;

/// Limit from the start until the server answers, which usually takes a second.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// Time from the stop signal until the process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// PostgreSQL refuses to run as root; Debian's package creates this user.
const SERVER_USER: &str = "postgres";

/// Finds the folder with the programs of the newest version.
pub(super) fn find() -> Option<PathBuf> {
    let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|folder| folder.join("initdb").is_file())
        .collect();
    let number = |folder: &PathBuf| -> u32 {
        let version = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        version.and_then(|version| version.parse().ok()).unwrap_or_default()
    };
    versions.sort_by_key(number);
    let elsewhere = ["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    versions.pop().or_else(|| elsewhere.into_iter().find(|folder| folder.join("initdb").is_file()))
}

/// A PostgreSQL server with its own folder.
pub(super) struct PrivateServer {
    /// The folder of its programs.
    programs: PathBuf,
    folder: PathBuf,
    user: Option<&'static str>,
    port: u16,
    process: Option<Process>,
}

pub(super) async fn start(programs: &Path, folder: &Path) -> Result<Postgres> {
    let user = rustix::process::geteuid().is_root().then_some(SERVER_USER);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let password = Uuid::now_v7().simple().to_string();
    let password_file = folder.join("password");
    std::fs::write(&password_file, &password)?;
    if let Some(user) = user {
        chown(user, folder).await?;
    }
    let mut initdb = server_command(&programs.join("initdb"), user)?;
    initdb
        .args([
            "--auth=scram-sha-256",
            "--username=postgres",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--pgdata",
        ])
        .arg(folder.join("data"))
        .arg("--pwfile")
        .arg(&password_file);
    run_command(initdb, "initdb").await?;
    let [address] = free_addresses()?;
    let mut private = PrivateServer {
        programs: programs.to_owned(),
        folder: folder.to_owned(),
        user,
        port: address.port(),
        process: None,
    };
    private.launch().await?;
    Ok(Postgres {
        url: format!("postgres://postgres:{password}@{address}/postgres"),
        origin: format!("a private process, {address}"),
        handle: ServiceHandle::Postgres(Box::new(private)),
    })
}

impl PrivateServer {
    /// Starts the server with the data in its folder and returns when it answers.
    pub(super) async fn launch(&mut self) -> Result<()> {
        let log = self.folder.join("postgres.log");
        let mut command = server_command(&self.programs.join("postgres"), self.user)?;
        command.arg("-D").arg(self.folder.join("data"));
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("port={}", self.port),
            "unix_socket_directories=",
            "max_connections=300",
            "fsync=off",
        ] {
            command.args(["-c", setting]);
        }
        let process = self.process.insert(Process::start_logged("postgres", command, &log)?);
        let started = wait_until_ready(process, &self.programs, self.port).await;
        started.with_context(|| format!("PostgreSQL did not start; end of its log:\n{}", log_tail(&log)))
    }

    /// Shuts the server down; open connections are closed.
    pub(super) async fn stop(&mut self) {
        self.stop_with_signal(Signal::INT).await;
    }

    /// Stops the server as if it had crashed: it recovers at its next start.
    pub(super) async fn crash(&mut self) {
        self.stop_with_signal(Signal::QUIT).await;
    }

    async fn stop_with_signal(&mut self, signal: Signal) {
        if let Some(process) = self.process.take() {
            process.stop(signal, STOP_TIMEOUT).await;
        }
    }
}

/// Command for one of the server's programs, without the user's environment.
fn server_command(program: &Path, user: Option<&str>) -> Result<Command> {
    // SIGINT, because after SIGTERM the server would wait for its clients to disconnect.
    let mut command = match user {
        None => command_with_death_signal(program, "INT"),
        Some(user) => command_as_user(user, program, "INT")?,
    };
    command.env_clear().env("LANG", "C.UTF-8").current_dir("/");
    Ok(command)
}

async fn wait_until_ready(process: &mut Process, programs: &Path, port: u16) -> Result<()> {
    let program = programs.join("pg_isready");
    process
        .wait_until("PostgreSQL", START_TIMEOUT, async || {
            let mut command = Command::new(&program);
            command.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).kill_on_drop(true);
            command.status().await.ok().filter(std::process::ExitStatus::success)
        })
        .await
        .map(drop)
}

async fn chown(user: &str, folder: &Path) -> Result<()> {
    let mut command = Command::new("chown");
    command.arg("-R").arg(user).arg(folder);
    run_command(command, "chown").await
}

async fn run_command(mut command: Command, name: &str) -> Result<()> {
    let output = command.kill_on_drop(true).output().await.with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
