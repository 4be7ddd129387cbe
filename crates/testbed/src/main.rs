//! `testbed`: services around a command, and the demo.

use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use testbed::process::{Process, Signal};
use testbed::services::{self, Supply};
use tokio::process::Command;
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
        /// The command and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Do the worker's main job once, and show it
    Demo,
}

/// From the signal to a command until what is left of it is killed.
const GRACE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match Cli::parse().asked {
        Asked::Run { command } => Box::pin(run(&command)).await,
        Asked::Demo => {
            let mut told = told_to_stop()?;
            tokio::select! {
                played = testbed::demo::play() => played.map(|()| ExitCode::SUCCESS),
                signal = told.next() => {
                    // What the demo has started is stopped as it is dropped.
                    Ok(ExitCode::from(128 + signal))
                }
            }
        }
    }
}

async fn run(command: &[String]) -> Result<ExitCode> {
    let mut told = told_to_stop()?;
    let supply = Supply::new()?;
    // Where a signal comes first, whatever was started is killed as it is dropped.
    tokio::select! {
        code = with_services(&supply, command) => code,
        signal = told.next() => Ok(ExitCode::from(128 + signal)),
    }
}

async fn with_services(supply: &Supply, command: &[String]) -> Result<ExitCode> {
    let (rabbitmq, postgres) = tokio::try_join!(supply.rabbitmq(), supply.postgres())?;
    let mut child = Command::new(&command[0]);
    child
        .args(&command[1..])
        .env(services::AMQP_URL, &rabbitmq.amqp_url)
        .env(services::RABBITMQ_API_URL, &rabbitmq.api_url)
        .env(services::DATABASE_URL, &postgres.url);
    let mut process = Process::start(&command[0], child)?;
    let status = process.wait().await;
    process.stop(Signal::TERM, GRACE).await;
    tokio::join!(rabbitmq.stop(), postgres.stop());
    status.map(code)
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
