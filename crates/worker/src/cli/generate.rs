//! `generate`: runs one job in this process, without a broker.

use async_trait::async_trait;
use broker::PublishOutcome;
use domain::command::Command;
use domain::event::Event;
use domain::outgoing::OutgoingMessage;
use tracing::Instrument;

use super::command_args::CommandArgs;
use super::exit::CliError;
use super::screen::{Progress, Screen};
use super::submit::show_terminal_event;
use super::tables::EventView;
use crate::bootstrap;
use crate::event_sink::{EventSink, PublishError};
use crate::gate::Intake;
use crate::job::{JobOutcome, JobRunner, RunOptions, record_outcome};
use crate::settings::Settings;
use crate::shutdown::{Shutdown, Signals};
use crate::telemetry::{Metrics, trace};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    command_args: CommandArgs,
    /// Print the terminal event as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    options: &Options,
    settings: &Settings,
    metrics: &Metrics,
    screen: &Screen,
) -> Result<(), CliError> {
    let command = options.command_args.to_command()?;
    settings.require_api_key()?;
    let signals = Signals::listen()
        .map_err(|error| CliError::unreachable(format!("signal handlers cannot be installed ({error})")))?;
    let (store, storage) = bootstrap::open(settings).await?;
    let runner = bootstrap::build_job_runner(settings, store, storage, metrics)?;
    bootstrap::register_concurrency_gauges(metrics, &runner, settings);
    let progress = screen.start_progress(command.image_descriptions.len());
    let interrupted = || {
        CliError::JobFailed(format!(
            "stopped; completed images are kept; repeat the command with the job id {} to continue",
            command.job_id
        ))
    };
    // Perhaps no worker is running, so this process probes a refused account itself.
    runner.gate().refresh().await;
    runner.gate().probe(false).await;
    let mut lease_notice_shown = false;
    // `grace_expired` is never cancelled: a second signal ends the process.
    let shutdown = Shutdown { stop: signals.stop_token().clone(), ..Shutdown::default() };
    loop {
        let span = trace::job_span(&command);
        let running = runner.run(&command, RunOptions::default(), &progress, &shutdown);
        let outcome = running.instrument(span.clone()).await;
        span.in_scope(|| record_outcome(outcome.as_ref()));
        match outcome? {
            JobOutcome::Ended(terminal) | JobOutcome::AlreadyEnded(terminal) => {
                drop(progress);
                return show_terminal_event(terminal.event.body.as_bytes(), options.json, screen);
            }
            JobOutcome::RetryAfter(delay) => {
                // The gate may have been closed by this attempt, or by one that did not open it.
                if runner.gate().refresh().await == Intake::Closed {
                    runner.gate().probe(false).await;
                }
                if runner.gate().refresh().await == Intake::Closed {
                    return Err(gate_closed(&runner, &command));
                }
                screen.print_note(&format!("missing images are tried again in {}", humantime::format_duration(delay)));
                tokio::select! {
                    () = signals.stop_token().cancelled() => return Err(interrupted()),
                    () = tokio::time::sleep(delay) => {}
                }
            }
            JobOutcome::Preempted => {}
            // The account gate has opened.
            JobOutcome::Interrupted if !signals.stop_token().is_cancelled() => {}
            JobOutcome::Interrupted => return Err(interrupted()),
            JobOutcome::GateClosed => {
                if runner.gate().reasons().is_empty() {
                    // It has opened again.
                    continue;
                }
                return Err(gate_closed(&runner, &command));
            }
            JobOutcome::Leased | JobOutcome::LeaseLost => {
                if !lease_notice_shown {
                    screen.print_note(
                        "another process holds the lease of this job, or stopped without releasing it; waiting",
                    );
                    lease_notice_shown = true;
                }
                tokio::select! {
                    () = signals.stop_token().cancelled() => return Err(interrupted()),
                    () = tokio::time::sleep(settings.jobs.leased_delay()) => {}
                }
            }
            JobOutcome::Purged => {
                return Err(CliError::Usage(format!("--job-id: job {} had ended and was purged", command.job_id)));
            }
            JobOutcome::Conflict => {
                return Err(CliError::Usage(format!("--job-id: {} belongs to another command", command.job_id)));
            }
        }
    }
}

fn gate_closed(runner: &JobRunner, command: &Command) -> CliError {
    let reasons: Vec<String> = runner.gate().reasons().iter().map(ToString::to_string).collect();
    CliError::JobFailed(format!(
        "the account gate is closed: {}; completed images are kept; repeat the command with the job id {} to continue",
        reasons.join("; "),
        command.job_id
    ))
}

#[async_trait]
impl EventSink for Progress {
    async fn publish(&self, event: &Event) -> Result<PublishOutcome, PublishError> {
        if let Some(event) = EventView::parse(event.body.as_bytes()) {
            self.show(&event);
        }
        Ok(PublishOutcome::Routed)
    }

    async fn send(&self, _: &OutgoingMessage) -> Result<(), PublishError> {
        Ok(())
    }
}
