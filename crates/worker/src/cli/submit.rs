//! `submit`: publishes a command, and with `--wait` follows its events until the terminal event.

use std::time::Duration;

use broker::{Broker, EventWatcher, Topology, WatchedMessage};
use domain::command::Command;
use serde_json::json;
use tokio::time::timeout;
use tracing::{Instrument, info_span};

use super::command_args::CommandArgs;
use super::exit::CliError;
use super::gate_note::note_closed_gate;
use super::screen::Screen;
use super::tables::EventView;
use super::{bulk_submit, estimate};
use crate::settings::Settings;
use crate::telemetry::trace;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    command_args: CommandArgs,
    /// Priority of the message, 0 to 255; commands with 5 or more overtake others
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u8>,
    /// Send nothing; print what `estimate` prints
    #[arg(long, conflicts_with_all = ["wait", "timeout"])]
    dry_run: bool,
    /// Show progress until the terminal event; exit with 0 if the job completed, 1 if it failed, 69 if --timeout passes
    #[arg(long)]
    wait: bool,
    /// Maximum time to wait with --wait, for example 90s or 2h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print JSON: the terminal event with --wait, the estimate with --dry-run, otherwise what was submitted
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let command_args = &options.command_args;
    if options.dry_run {
        return estimate::show(command_args, options.json, settings, screen).await;
    }
    if let Some(list) = command_args.command_list() {
        if options.wait {
            return Err(CliError::Usage("--wait: not allowed with a file of several commands".to_owned()));
        }
        return bulk_submit::run(list, command_args, options.priority, options.json, settings, screen).await;
    }
    let command = command_args.to_command()?;
    let topology = Topology::new(settings.jobs.queue_delays());
    let broker = Broker::connect(&settings.amqp_url, &topology).await?;
    // Subscribe before publishing, so that no event is missed.
    let watch = if options.wait { Some(broker.watch_events().await?) } else { None };
    let body = serde_json::to_vec(&command).expect("a command serialises");
    let submitting = async {
        let publisher = broker.create_publisher(Duration::ZERO).await?;
        publisher.submit(command.job_id, &body, options.priority, trace::current_context).await
    };
    let span = info_span!("submit", job.id = %command.job_id, project.id = command.project_id);
    submitting.instrument(span).await.map_err(|error| {
        let job_id = command.job_id;
        CliError::unreachable(format!("{error}; if the command was sent, it may run: repeat it with --job-id {job_id}"))
    })?;
    note_closed_gate(settings, screen).await;
    let outcome = match watch {
        None => {
            screen.print(&format_submitted(&command, options.json));
            Ok(())
        }
        Some(watch) => match timeout(options.timeout, wait_for_terminal_event(watch, &command, screen)).await {
            Ok(Ok(terminal)) => show_terminal_event(&terminal, options.json, screen),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(CliError::unreachable(format!(
                "no terminal event of job {} received within {}; is a worker running? The command stays on the queue",
                command.job_id,
                humantime::format_duration(options.timeout)
            ))),
        },
    };
    broker.close().await;
    outcome
}

fn format_submitted(command: &Command, as_json: bool) -> String {
    let (job_id, total) = (command.job_id, command.image_descriptions.len());
    if as_json {
        return json!({"job_id": job_id, "project_id": command.project_id, "total": total}).to_string();
    }
    format!("submitted: job {job_id}, {total} images\nshow its state with: asset-worker jobs show {job_id}")
}

/// Shows progress until the job's terminal event, and returns the body of that event.
async fn wait_for_terminal_event(
    mut watch: EventWatcher,
    command: &Command,
    screen: &Screen,
) -> Result<Vec<u8>, CliError> {
    let progress = screen.start_progress(command.image_descriptions.len());
    loop {
        let event = watch.next().await.map_err(|error| {
            CliError::unreachable(format!(
                "{error}; the job continues; show its state with: asset-worker jobs show {}",
                command.job_id
            ))
        })?;
        match event {
            WatchedMessage::Event(body) => {
                let Some(event) = EventView::parse(&body).filter(|event| event.data.job_id == command.job_id) else {
                    continue;
                };
                if event.is_terminal() {
                    return Ok(body);
                }
                progress.show(&event);
            }
            WatchedMessage::DeadLetter { body, reason } => {
                let is_own_command = serde_json::from_slice::<Command>(&body).is_ok_and(|dead| dead == *command);
                if is_own_command {
                    return Err(CliError::JobFailed(format!("job {} was refused: {reason}", command.job_id)));
                }
            }
        }
    }
}

/// Prints a terminal event. Returns an error unless the job completed.
pub(super) fn show_terminal_event(terminal: &[u8], as_json: bool, screen: &Screen) -> Result<(), CliError> {
    let Some(seen) = EventView::parse(terminal) else {
        return Err(CliError::JobFailed("the terminal event cannot be parsed".to_owned()));
    };
    if as_json {
        screen.print(&String::from_utf8_lossy(terminal));
    } else {
        screen.print(&seen.report());
    }
    if seen.is_completed() { Ok(()) } else { Err(CliError::JobFailed(format!("job {} failed", seen.data.job_id))) }
}
