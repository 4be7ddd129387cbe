//! The command line: what can be asked of the program, and what it exits with.

mod dead_letters;
mod doctor;
mod exit;
mod generate;
mod inspect;
mod jobs;
mod migrate;
mod order;
mod run;
mod screen;
mod style;
mod submit;
mod tables;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::settings::{Settings, TelemetrySettings};
use crate::telemetry::Telemetry;
use exit::{Exit, Failure};
use screen::Screen;

/// Turns lists of picture descriptions into finished images
///
/// Takes commands from RabbitMQ, makes images with Stability AI's API, stores files and rows, and publishes events.
#[derive(Debug, Parser)]
#[command(name = "asset-worker", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    asked: Asked,
}

const AFTER_HELP: &str = "\
Settings are environment variables; the README lists them all. The one that has no default is STABILITY_API_KEY.

Exit codes: 0 well, 1 the job failed, 64 bad setting or usage, 69 a service could not be reached, 70 a bug";

#[derive(Debug, Subcommand)]
enum Asked {
    /// Take commands from the queue until told to stop
    Run,
    /// Put a command on the queue
    Submit(submit::Options),
    /// Make the images of one command here and now, without a broker
    Generate(generate::Options),
    /// Show what the database knows of jobs
    Jobs(jobs::Options),
    /// Look at commands that nobody could deal with, put them back, or throw them away
    DeadLetters(dead_letters::Options),
    /// Keep, show or forget how a project's images look
    Style(style::Options),
    /// Show how a picture was made
    Inspect(inspect::Options),
    /// Bring the database's schema up to date
    Migrate(migrate::Options),
    /// Check every setting and connection, and say what to do
    Doctor(doctor::Options),
}

impl Asked {
    /// What is logged where `RUST_LOG` is not set: a service tells its story, a command only what is amiss.
    fn default_filter(&self) -> &'static str {
        match self {
            Self::Run => "info",
            Self::Submit(_)
            | Self::Generate(_)
            | Self::Jobs(_)
            | Self::DeadLetters(_)
            | Self::Style(_)
            | Self::Inspect(_)
            | Self::Migrate(_)
            | Self::Doctor(_) => "warn",
        }
    }
}

impl Asked {
    /// Whether it takes part in jobs, so that its telemetry is of interest; a short look at something need not wait for a collector.
    fn is_traced(&self) -> bool {
        matches!(self, Self::Run | Self::Submit(_) | Self::Generate(_))
    }
}

/// The program: reads its arguments and its environment, does what was asked, and says how that went.
pub fn main() -> ExitCode {
    // A panic is a bug, and is reported by the panic hook.
    let exit = std::panic::catch_unwind(|| match Cli::try_parse() {
        Ok(cli) => done(cli.asked),
        Err(refused) => {
            // Nobody is there to be told that nobody is there.
            let _ = refused.print();
            if refused.use_stderr() { Exit::Usage } else { Exit::Well }
        }
    });
    exit.unwrap_or(Exit::Bug).into()
}

fn done(asked: Asked) -> Exit {
    let screen = Screen::new();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unreachable(format!("the runtime cannot be started ({error})")))
        .and_then(|runtime| runtime.block_on(follow(asked, &screen)));
    match outcome {
        Ok(()) => Exit::Well,
        Err(failure) => {
            screen.complain(&failure.to_string());
            failure.exit()
        }
    }
}

async fn follow(asked: Asked, screen: &Screen) -> Result<(), Failure> {
    if let Asked::Doctor(options) = asked {
        // A bad setting is the doctor's first finding.
        return doctor::doctor(&options, Settings::from_env(), screen).await;
    }
    if let Asked::Inspect(options) = asked {
        // A file can be looked at whatever the settings are.
        return inspect::inspect(&options, screen);
    }
    let settings = Settings::from_env()?;
    let nothing = TelemetrySettings::default();
    let exported = if asked.is_traced() { &settings.telemetry } else { &nothing };
    let telemetry = Telemetry::start(&settings, exported, asked.default_filter(), screen.log_writer())?;
    let done = Box::pin(did(asked, &settings, &telemetry, screen)).await;
    telemetry.finish();
    done
}

async fn did(asked: Asked, settings: &Settings, telemetry: &Telemetry, screen: &Screen) -> Result<(), Failure> {
    match asked {
        Asked::Run => run::run(settings, telemetry).await,
        Asked::Submit(options) => submit::submit(&options, settings, screen).await,
        Asked::Generate(options) => generate::generate(&options, settings, &telemetry.metrics, screen).await,
        Asked::Jobs(options) => jobs::jobs(&options, settings, screen).await,
        Asked::DeadLetters(options) => dead_letters::dead_letters(&options, settings, screen).await,
        Asked::Style(options) => style::style(&options, settings, screen).await,
        Asked::Migrate(options) => migrate::migrate(&options, settings, screen).await,
        Asked::Inspect(_) | Asked::Doctor(_) => Ok(()),
    }
}
