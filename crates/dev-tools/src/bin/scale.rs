//! `scale`: measures several workers side by side and the cost of telemetry.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use dev_tools::scale::{Measurement, measure};

/// Measure several workers side by side and the cost of telemetry; run by `make scale`
#[derive(Parser)]
struct Cli {
    /// Measurements to run; all if none is given
    measurements: Vec<Measurement>,
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer tool prints to the terminal")]
async fn main() -> ExitCode {
    let Cli { measurements } = Cli::parse();
    let measurements = if measurements.is_empty() { Measurement::value_variants().to_vec() } else { measurements };
    let mut code = ExitCode::SUCCESS;
    for measurement in measurements {
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
