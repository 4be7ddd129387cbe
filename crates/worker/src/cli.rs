//! The command line: subcommands and exit codes.

mod bulk_submit;
mod command_args;
mod command_list;
mod config_args;
mod costs;
mod database;
mod dead_letters;
mod doctor;
mod estimate;
mod exit;
mod gate_note;
mod generate;
mod inspect;
mod jobs;
mod journal;
mod migrate;
mod pause;
mod purge;
mod run;
mod screen;
mod serve;
mod shell;
mod storage;
mod style;
mod submit;
mod tables;
mod time_ago;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::settings::{Settings, TelemetrySettings};
use crate::telemetry::Telemetry;
use exit::{CliError, ExitStatus};
use screen::Screen;

/// Generate images from lists of descriptions
///
/// Consumes commands from RabbitMQ, generates images with Stability AI's API, stores files and database rows, and
/// publishes events.
#[derive(Debug, Parser)]
#[command(name = "asset-worker", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    subcommand: Subcommand,
}

const AFTER_HELP: &str = "\
Settings are environment variables; docs/configuration.md lists them all. Only STABILITY_API_KEY is required.

Exit codes: 0 success, 1 the job failed or did not end, 64 bad setting or usage, \
    69 a service could not be reached, 70 a bug";

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Process commands from the queue until SIGTERM or SIGINT
    Run,
    /// Serve the pages and the HTTP API until SIGTERM or SIGINT
    ///
    /// Runs beside the workers, over the same database, broker and storage. Also ends cancelled and expired jobs, so that
    /// they end without a worker.
    Serve,
    /// Publish a command to the queue
    Submit(submit::Options),
    /// Generate the images of one command in this process, without a broker
    Generate(generate::Options),
    /// Estimate what a command costs and how long it takes; sends nothing
    Estimate(estimate::Options),
    /// List and show jobs, or publish their terminal events again
    Jobs(jobs::Options),
    /// Show what jobs have cost, by project, day or engine
    Costs(costs::Options),
    /// Remove ended jobs from the database, and on request their files
    Purge(purge::Options),
    /// Compare the stored files with the database
    Storage(storage::Options),
    /// Inspect, replay or discard dead-lettered commands
    DeadLetters(dead_letters::Options),
    /// Set, show or clear the style of a project's images
    Style(style::Options),
    /// Show the metadata embedded in an image file
    Inspect(inspect::Options),
    /// Stop taking commands and paying for images, in all workers
    Pause(pause::PauseOptions),
    /// Continue after pause
    Resume(pause::ResumeOptions),
    /// Apply pending database migrations
    Migrate(migrate::Options),
    /// Check all settings and connections, and suggest fixes
    Doctor(doctor::Options),
    /// Print completions for a shell
    Completions(shell::CompletionOptions),
    /// Write the man pages
    Man(shell::ManOptions),
}

impl Subcommand {
    /// The log filter if `RUST_LOG` is not set: `info` for the worker and the server, only warnings and errors for other
    /// subcommands. The errors that lapin logs are not shown: each subcommand reports them itself.
    fn default_log_filter(&self) -> &'static str {
        if matches!(self, Self::Run | Self::Serve) { "info" } else { "warn,lapin=off" }
    }

    /// Whether the subcommand exports telemetry: only those that take part in jobs do. The others are short and should
    /// not wait for a collector.
    fn exports_telemetry(&self) -> bool {
        matches!(self, Self::Run | Self::Serve | Self::Submit(_) | Self::Generate(_))
    }
}

/// Entry point of the program: parses arguments and environment, runs the subcommand and returns the exit code.
pub fn main() -> ExitCode {
    // A panic is a bug; the panic hook reports it.
    let exit = std::panic::catch_unwind(|| match Cli::try_parse() {
        Ok(cli) => execute(cli.subcommand),
        Err(error) => {
            // A failed print cannot be reported.
            let _ = error.print();
            if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Success }
        }
    });
    exit.unwrap_or(ExitStatus::Bug).into()
}

fn execute(subcommand: Subcommand) -> ExitStatus {
    let screen = Screen::new();
    // One thread beside the main one: pictures are processed on other threads, and what is left needs a tenth of a core.
    // Each further thread costs CPU time for its wake-ups: 2% of a worker's on two cores.
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| CliError::unreachable(format!("the async runtime cannot be started ({error})")))
        .and_then(|runtime| runtime.block_on(run_subcommand(subcommand, &screen)));
    match outcome {
        Ok(()) => ExitStatus::Success,
        Err(failure) => {
            screen.print_error(&failure.to_string());
            failure.exit_status()
        }
    }
}

async fn run_subcommand(subcommand: Subcommand, screen: &Screen) -> Result<(), CliError> {
    if let Subcommand::Doctor(options) = subcommand {
        // `doctor` reports an invalid setting as a finding.
        return doctor::run(&options, Settings::from_env(), screen).await;
    }
    // These need no settings.
    match subcommand {
        Subcommand::Inspect(options) => return inspect::run(&options, screen),
        Subcommand::Completions(options) => {
            shell::print_completions(&options, Cli::command(), screen);
            return Ok(());
        }
        Subcommand::Man(options) => return shell::write_man_pages(&options, Cli::command()),
        _ => {}
    }
    let settings = Settings::from_env()?;
    let no_export = TelemetrySettings::default();
    let telemetry_settings = if subcommand.exports_telemetry() { &settings.telemetry } else { &no_export };
    let telemetry =
        Telemetry::start(&settings, telemetry_settings, subcommand.default_log_filter(), screen.log_writer())?;
    let result = Box::pin(dispatch(subcommand, &settings, &telemetry, screen)).await;
    telemetry.shutdown();
    result
}

async fn dispatch(
    subcommand: Subcommand,
    settings: &Settings,
    telemetry: &Telemetry,
    screen: &Screen,
) -> Result<(), CliError> {
    match subcommand {
        Subcommand::Run => run::run(settings, telemetry).await,
        Subcommand::Serve => serve::run(settings, telemetry).await,
        Subcommand::Submit(options) => submit::run(&options, settings, screen).await,
        Subcommand::Generate(options) => generate::run(&options, settings, &telemetry.metrics, screen).await,
        Subcommand::Estimate(options) => estimate::run(&options, settings, screen).await,
        Subcommand::Jobs(options) => jobs::run(&options, settings, screen).await,
        Subcommand::Costs(options) => costs::run(&options, settings, screen).await,
        Subcommand::Purge(options) => purge::run(&options, settings, screen).await,
        Subcommand::Storage(options) => storage::run(&options, settings, screen).await,
        Subcommand::DeadLetters(options) => dead_letters::run(&options, settings, screen).await,
        Subcommand::Style(options) => style::run(&options, settings, screen).await,
        Subcommand::Pause(options) => pause::pause(&options, settings, screen).await,
        Subcommand::Resume(options) => pause::resume(&options, settings, screen).await,
        Subcommand::Migrate(options) => migrate::run(&options, settings, screen).await,
        Subcommand::Inspect(_) | Subcommand::Doctor(_) | Subcommand::Completions(_) | Subcommand::Man(_) => Ok(()),
    }
}
