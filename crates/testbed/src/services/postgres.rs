//! A private PostgreSQL of installed binaries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use uuid::Uuid;

use super::{Kept, Postgres, Server};
use crate::process::{Process, Signal, as_user, bound_to_us, tail};
use crate::wait::free_addresses;

/// From its start until it answers; usually a second.
const START_LIMIT: Duration = Duration::from_mins(1);
/// PostgreSQL refuses to run as root; Debian's package brings this user.
const USER: &str = "postgres";

/// The folder of the newest version's programs.
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

pub(super) async fn start(programs: &Path, folder: &Path) -> Result<Postgres> {
    let user = rustix::process::geteuid().is_root().then_some(USER);
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let password = Uuid::now_v7().simple().to_string();
    let password_file = folder.join("password");
    std::fs::write(&password_file, &password)?;
    let data = folder.join("data");
    if let Some(user) = user {
        chown(user, folder).await?;
    }
    let mut initdb = server(&programs.join("initdb"), user)?;
    initdb
        .args([
            "--auth=scram-sha-256",
            "--username=postgres",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
            "--pgdata",
        ])
        .arg(&data)
        .arg("--pwfile")
        .arg(&password_file);
    finished(initdb, "initdb").await?;
    let [address] = free_addresses()?;
    let log = folder.join("postgres.log");
    let mut command = server(&programs.join("postgres"), user)?;
    command.arg("-D").arg(&data);
    for setting in [
        "listen_addresses=127.0.0.1",
        &format!("port={}", address.port()),
        "unix_socket_directories=",
        "max_connections=300",
        "fsync=off",
    ] {
        command.args(["-c", setting]);
    }
    let mut process = Process::logged("postgres", command, &log)?;
    let started = ready(&mut process, programs, address.port()).await;
    started.with_context(|| format!("PostgreSQL did not start; the end of its log:\n{}", tail(&log)))?;
    Ok(Postgres {
        url: format!("postgres://postgres:{password}@{address}/postgres"),
        origin: format!("a private process, {address}"),
        kept: Kept::Processes(vec![Server { process, stop: Signal::INT }]),
    })
}

/// One of its programs, with nothing of the user's own environment in it.
fn server(program: &Path, user: Option<&str>) -> Result<Command> {
    // SIGINT, since SIGTERM would wait for clients to leave.
    let mut command = match user {
        None => bound_to_us(program, "INT"),
        Some(user) => as_user(user, program, "INT")?,
    };
    command.env_clear().env("LANG", "C.UTF-8").current_dir("/");
    Ok(command)
}

async fn ready(process: &mut Process, programs: &Path, port: u16) -> Result<()> {
    let program = programs.join("pg_isready");
    process
        .until("PostgreSQL", START_LIMIT, async || {
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
    finished(command, "chown").await
}

async fn finished(mut command: Command, name: &str) -> Result<()> {
    let output = command.kill_on_drop(true).output().await.with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
