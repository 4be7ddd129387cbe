//! `scale`: measures what several workers do side by side, and what telemetry costs.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use dev_tools::scale::{Measurement, measure};

/// Measures what workers do, and what it costs; run by `make scale`
#[derive(Parser)]
struct Cli {
    /// What is measured; all unless given
    measurement: Vec<Asked>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Asked {
    /// How much of the account's rate four workers use
    Quota,
    /// What they send in a lock-out
    Lockout,
    /// How much more four get done than one
    Workers,
    /// How much more CPU an image takes with telemetry than without
    Telemetry,
    /// How much slower images come with a collector that never answers
    Deaf,
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for developers speaks to them")]
async fn main() -> ExitCode {
    let Cli { measurement } = Cli::parse();
    let all = [Asked::Quota, Asked::Lockout, Asked::Workers, Asked::Telemetry, Asked::Deaf];
    let mut code = ExitCode::SUCCESS;
    for measurement in if measurement.is_empty() { all.to_vec() } else { measurement } {
        let measurement = match measurement {
            Asked::Quota => Measurement::Quota,
            Asked::Lockout => Measurement::Lockout,
            Asked::Workers => Measurement::Workers,
            Asked::Telemetry => Measurement::Telemetry,
            Asked::Deaf => Measurement::UnresponsiveCollector,
        };
        match Box::pin(measure(measurement)).await {
            Ok(measured) => {
                println!("{measurement:?}\n\n{measured}");
                if !measured.passed {
                    code = ExitCode::FAILURE;
                }
            }
            Err(error) => {
                eprintln!("scale: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    code
}
