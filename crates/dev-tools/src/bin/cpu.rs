//! `cpu`: measures the CPU time of a worker for an image.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use dev_tools::cpu::{CpuPlan, measure};

/// Measure the CPU time of a worker for an image; run by `make bench`
#[derive(Parser)]
struct Cli {
    /// Number of jobs
    #[arg(long, default_value_t = 10)]
    jobs: usize,
    /// Images of each job
    #[arg(long, default_value_t = 16)]
    images: usize,
    /// How often each build runs; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Program asset-worker of another build; both run in turn
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Show the parts of the CPU time; needs perf
    #[arg(long)]
    profile: bool,
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer tool prints to the terminal")]
async fn main() -> ExitCode {
    let Cli { jobs, images, rounds, baseline, profile } = Cli::parse();
    match Box::pin(measure(&CpuPlan { jobs, images, rounds, baseline, profile })).await {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cpu: {error:#}");
            ExitCode::FAILURE
        }
    }
}
