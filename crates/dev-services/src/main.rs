//! `dev-services`: runs a command with services, the demo, or the test with the real API.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use dev_services::process::{Process, Signal, command_with_death_signal};
use dev_services::services::{self, ServiceProvider};
use tokio::signal::unix::{SignalKind, signal};

/// Provide real services for tests and the demo
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(clap::Subcommand)]
enum Subcommand {
    /// Run a command with RabbitMQ and PostgreSQL, and stop them afterwards
    Run {
        /// Obtain the services only from a Docker engine
        #[arg(long)]
        containers: bool,
        /// Command to run and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Run one job with a broker, the API sandbox and a worker, and show the result
    Demo,
    /// Generate three images with the real API if an API key is set
    Live,
}

/// Time from a signal until the rest of the command's process group is killed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
#[expect(clippy::print_stderr, reason = "a developer tool prints to the terminal")]
async fn main() -> ExitCode {
    run_cli().await.unwrap_or_else(|error| {
        eprintln!("dev-services: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run_cli() -> Result<ExitCode> {
    match Cli::parse().subcommand {
        Subcommand::Run { containers, command } => {
            let supply = if containers { ServiceProvider::with_containers_only()? } else { ServiceProvider::new()? };
            Box::pin(run_with_services(&supply, &command)).await
        }
        Subcommand::Live => dev_services::live::run().await.map(|()| ExitCode::SUCCESS),
        Subcommand::Demo => {
            let mut signals = listen_for_stop_signals()?;
            tokio::select! {
                result = dev_services::demo::run() => result.map(|()| ExitCode::SUCCESS),
                signal = signals.recv() => {
                    // Everything that the demo started is stopped when it is dropped.
                    Ok(ExitCode::from(128 + signal))
                }
            }
        }
    }
}

async fn run_with_services(supply: &ServiceProvider, command: &[String]) -> Result<ExitCode> {
    let mut signals = listen_for_stop_signals()?;
    // If a signal arrives meanwhile, everything that was started is killed when it is dropped.
    let (rabbitmq, postgres) = tokio::select! {
        obtained = supply.obtain_all() => obtained?,
        signal = signals.recv() => return Ok(ExitCode::from(128 + signal)),
    };
    let mut child = command_with_death_signal(Path::new(&command[0]), "TERM");
    child
        .args(&command[1..])
        .env(services::AMQP_URL_VAR, &rabbitmq.amqp_url)
        .env(services::RABBITMQ_API_URL_VAR, &rabbitmq.api_url)
        .env(services::DATABASE_URL_VAR, &postgres.url)
        .envs(find_prometheus().map(|programs| (services::PROMETHEUS_VAR, programs)))
        .envs(find_browser().map(|program| (services::CHROMEDRIVER_VAR, program)))
        // All services are on this machine.
        .env("NO_PROXY", "127.0.0.1,localhost");
    let mut process = Process::start(&command[0], child)?;
    let code = tokio::select! {
        status = process.wait() => status.map(exit_code),
        signal = signals.recv() => Ok(ExitCode::from(128 + signal)),
    };
    process.stop(Signal::TERM, SHUTDOWN_GRACE).await;
    tokio::join!(rabbitmq.stop(), postgres.stop());
    code
}

/// The browser of the tests that need one; the others run without it.
fn find_browser() -> Option<PathBuf> {
    services::chromedriver().inspect_err(|why| dev_services::print_status(&format!("{why:#}"))).ok()
}

/// Returns the folder of Prometheus's programs. If there is none, prints why: most commands do not need them.
fn find_prometheus() -> Option<PathBuf> {
    services::prometheus_programs().inspect_err(|why| dev_services::print_status(&format!("{why:#}"))).ok()
}

fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

fn listen_for_stop_signals() -> Result<StopSignals> {
    let listen = |kind| signal(kind).context("cannot install signal handlers");
    Ok(StopSignals {
        interrupt: listen(SignalKind::interrupt())?,
        terminate: listen(SignalKind::terminate())?,
        hangup: listen(SignalKind::hangup())?,
    })
}

impl StopSignals {
    /// Waits for a stop signal and returns its number.
    async fn recv(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}
