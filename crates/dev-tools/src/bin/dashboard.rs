//! `dashboard`: draws the Grafana dashboard's panels from real data.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Draws the Grafana dashboard's panels from real data; run by `make dashboard`
#[derive(Parser)]
struct Cli {
    /// Where the SVG goes
    file: PathBuf,
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for developers speaks to them")]
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
