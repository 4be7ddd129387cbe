//! `chaos`: runs the chaos test of the built programs with a broker and a database of its own.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dev_services::services::{self, ServiceProvider};
use dev_tools::chaos::{self, Plan, Services};
use tokio::signal::unix::{SignalKind, signal};

/// Inject faults into workers, broker and database while many jobs run, then verify the results
#[derive(Parser)]
struct Cli {
    /// Seed that determines the jobs and the order of the disturbances
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of jobs, each with 1 to 12 images
    #[arg(long, default_value_t = 200, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=999))]
    jobs: usize,
    /// Number of workers
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=20))]
    workers: usize,
    /// Seconds of the first outage of broker and database; later outages last less than five seconds
    #[arg(long, default_value_t = 60)]
    first_outage: u64,
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "a developer tool prints to the terminal")]
async fn main() -> ExitCode {
    let mut interrupt = signal(SignalKind::interrupt()).expect("signal handlers can be installed");
    let mut terminate = signal(SignalKind::terminate()).expect("signal handlers can be installed");
    let result = tokio::select! {
        result = run(Cli::parse()) => result,
        // Returning drops the future of `run`, which stops the services and workers that it started.
        _ = interrupt.recv() => return ExitCode::from(130),
        _ = terminate.recv() => return ExitCode::from(143),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the report goes to standard output")]
async fn run(cli: Cli) -> Result<bool> {
    for given in [services::AMQP_URL_VAR, services::DATABASE_URL_VAR] {
        let why = "chaos restarts the broker and the database, so it needs its own";
        ensure!(dev_services::env_var(given).is_none(), "{given} must not be set: {why}");
    }
    let Cli { seed, jobs, workers, first_outage: absence } = cli;
    let plan = Plan {
        seed,
        jobs,
        max_images: 12,
        workers,
        requests_between_disturbances: (8, 28),
        lease: Duration::from_secs(3),
        first_outage: Duration::from_secs(absence),
    };
    let supply = ServiceProvider::new()?;
    let mut services = Services::Owned(Box::new(supply.obtain_all().await?));
    let report = Box::pin(chaos::run(&plan, &mut services)).await.with_context(|| format!("seed {seed}"));
    services.stop().await;
    let report = report?;
    println!("{report}");
    Ok(report.violations.is_empty())
}
