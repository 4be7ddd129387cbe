//! `chaos`: the torture run of the built programs, on a broker and a database of its own.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dev_services::services::{self, ServiceProvider};
use dev_tools::chaos::{self, Plan, Services};
use tokio::signal::unix::{SignalKind, signal};

/// Does to workers, broker and database what can be done to them, and looks at what came of it
#[derive(Parser)]
struct Cli {
    /// Another seed does other things in another order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Commands of 1 to 12 images
    #[arg(long, default_value_t = 200, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=999))]
    jobs: usize,
    /// Workers side by side
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=20))]
    workers: usize,
    /// Seconds that broker and database are away the first time; later they are away for less than five
    #[arg(long, default_value_t = 60)]
    first_outage: u64,
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "a program for developers speaks to them")]
async fn main() -> ExitCode {
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be listened to");
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened to");
    let result = tokio::select! {
        result = run(Cli::parse()) => result,
        // What was started is stopped as it is dropped.
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

#[expect(clippy::print_stdout, reason = "the table is what it is for")]
async fn run(cli: Cli) -> Result<bool> {
    for given in [services::AMQP_URL, services::DATABASE_URL] {
        let why = "it stops and starts broker and database, and so needs its own";
        ensure!(dev_services::variable(given).is_none(), "{given} must not be set: {why}");
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
    let mut ground = Services::Owned(Box::new(supply.obtain_all().await?));
    let report = Box::pin(chaos::run(&plan, &mut ground)).await.with_context(|| format!("seed {seed}"));
    ground.stop().await;
    let report = report?;
    println!("{report}");
    Ok(report.violations.is_empty())
}
