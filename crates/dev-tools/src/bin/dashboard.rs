//! `dashboard`: renders the panels of the Grafana dashboard from the data of a real run.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Render the Grafana dashboard of two workers with injected faults; run by `make dashboard`
#[derive(Parser)]
struct Cli {
    /// SVG file to write
    file: PathBuf,
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a developer tool prints to the terminal")]
async fn main() -> ExitCode {
    let Cli { file } = Cli::parse();
    match Box::pin(dev_tools::dashboard::draw(&file)).await {
        Ok(()) => {
            println!("{}", file.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("dashboard: {error:#}");
            ExitCode::FAILURE
        }
    }
}
