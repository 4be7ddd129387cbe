//! `dev-services`: services around a command, and the demo.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use dev_services::process::{Process, Signal, bound_to_us};
use dev_services::services::{self, Supply};
use tokio::signal::unix::{SignalKind, signal};

/// Real services for tests and the demo
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    asked: Asked,
}

#[derive(Subcommand)]
enum Asked {
    /// Run a command with RabbitMQ and PostgreSQL at hand, and stop them after it
    Run {
        /// Take them from a Docker engine, and from nowhere else
        #[arg(long)]
        containers: bool,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Do the worker's main job once, and show it
    Demo,
    /// Make three images with the real API, where there is a key for it
    Live,
}

/// From a signal until what is left of the command is killed.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
#[expect(clippy::print_stderr, reason = "a program for developers speaks to them")]
async fn main() -> ExitCode {
    done().await.unwrap_or_else(|error| {
        eprintln!("dev-services: {error:#}");
        ExitCode::FAILURE
    })
}

async fn done() -> Result<ExitCode> {
    match Cli::parse().asked {
        Asked::Run { containers, command } => {
            let supply = if containers { Supply::of_containers()? } else { Supply::new()? };
            Box::pin(run(&supply, &command)).await
        }
        Asked::Live => dev_services::live::test().await.map(|()| ExitCode::SUCCESS),
        Asked::Demo => {
            let mut told = told_to_stop()?;
            tokio::select! {
                played = dev_services::demo::play() => played.map(|()| ExitCode::SUCCESS),
                signal = told.next() => {
                    // What the demo has started is stopped as it is dropped.
                    Ok(ExitCode::from(128 + signal))
                }
            }
        }
    }
}

async fn run(supply: &Supply, command: &[String]) -> Result<ExitCode> {
    let mut told = told_to_stop()?;
    // Where a signal comes meanwhile, whatever was started is killed as it is dropped.
    let (rabbitmq, postgres) = tokio::select! {
        obtained = supply.both() => obtained?,
        signal = told.next() => return Ok(ExitCode::from(128 + signal)),
    };
    let mut child = bound_to_us(Path::new(&command[0]), "TERM");
    child
        .args(&command[1..])
        .env(services::AMQP_URL, &rabbitmq.amqp_url)
        .env(services::RABBITMQ_API_URL, &rabbitmq.api_url)
        .env(services::DATABASE_URL, &postgres.url)
        .envs(prometheus().map(|programs| (services::PROMETHEUS, programs)))
        // All of it is on this machine.
        .env("NO_PROXY", "127.0.0.1,localhost");
    let mut process = Process::start(&command[0], child)?;
    let code = tokio::select! {
        status = process.wait() => status.map(code),
        signal = told.next() => Ok(ExitCode::from(128 + signal)),
    };
    process.stop(Signal::TERM, GRACE).await;
    tokio::join!(rabbitmq.stop(), postgres.stop());
    code
}

/// The programs of Prometheus. Most commands do without; whoever needs them says so.
fn prometheus() -> Option<PathBuf> {
    services::prometheus_programs().inspect_err(|why| dev_services::say(&format!("{why:#}"))).ok()
}

fn code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

struct Told {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

fn told_to_stop() -> Result<Told> {
    let listen = |kind| signal(kind).context("signals cannot be listened to");
    Ok(Told {
        interrupt: listen(SignalKind::interrupt())?,
        terminate: listen(SignalKind::terminate())?,
        hangup: listen(SignalKind::hangup())?,
    })
}

impl Told {
    /// The number of the signal that tells us to stop.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}
