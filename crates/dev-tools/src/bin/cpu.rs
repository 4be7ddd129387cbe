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
    #[arg(long, value_name = "PROGRAM")]
    baseline: Option<PathBuf>,
    /// Python with celery, httpx, pillow and sqlalchemy; the design that the worker replaces runs too
    #[arg(long, value_name = "PYTHON")]
    celery: Option<PathBuf>,
    /// Show the parts of the CPU time and count allocations; needs perf and root
    #[arg(long)]
    profile: bool,
    /// Observe the memory during a job of 200 images and 2,000 jobs of one image
    #[arg(long)]
    long_runs: bool,
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer tool prints to the terminal")]
async fn main() -> ExitCode {
    let Cli { jobs, images, rounds, baseline, celery, profile, long_runs } = Cli::parse();
    let plan = CpuPlan { jobs, images, rounds, baseline, celery, profile, long_runs };
    match Box::pin(measure(&plan)).await {
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
