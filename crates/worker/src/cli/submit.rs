//! `submit`: a command onto the queue, and with `--wait` its events until the last.

use std::time::Duration;

use broker::{Broker, Topology, Watch, Watched};
use domain::command::Command;
use serde_json::json;
use tokio::time::timeout;
use tracing::{Instrument, info_span};

use super::exit::Failure;
use super::order::Order;
use super::screen::Screen;
use super::tables::Seen;
use crate::settings::Settings;
use crate::telemetry::trace;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    order: Order,
    /// Show progress until the terminal event; exit 0 where the job completed, 1 where it failed
    #[arg(long)]
    wait: bool,
    /// With --wait: how long to wait at most, such as 90s or 2h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print JSON: the terminal event with --wait, else the job's id
    #[arg(long)]
    json: bool,
}

pub(super) async fn submit(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), Failure> {
    let command = options.order.command()?;
    let topology = Topology::new(settings.jobs.queue_delays());
    let broker = Broker::connect(&settings.amqp_url, &topology).await?;
    // Watching begins before there is anything to see.
    let watch = if options.wait { Some(broker.watch().await?) } else { None };
    let body = serde_json::to_vec(&command).expect("a command serialises");
    let submitting = async {
        let publisher = broker.publisher().await?;
        publisher.submit(&body, trace::current).await
    };
    let span = info_span!("submit", job.id = %command.job_id, project.id = command.project_id);
    submitting.instrument(span).await?;
    let outcome = match watch {
        None => {
            screen.print(&submitted(&command, options.json));
            Ok(())
        }
        Some(watch) => match timeout(options.timeout, watched(watch, &command, screen)).await {
            Ok(Ok(last)) => shown(&last, options.json, screen),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::unreachable(format!(
                "no terminal event of job {} within {}; is a worker running? The command stays on the queue",
                command.job_id,
                humantime::format_duration(options.timeout)
            ))),
        },
    };
    broker.close().await;
    outcome
}

fn submitted(command: &Command, as_json: bool) -> String {
    let (job_id, total) = (command.job_id, command.image_descriptions.len());
    if as_json {
        return json!({"job_id": job_id, "project_id": command.project_id, "total": total}).to_string();
    }
    format!("submitted: job {job_id}, {total} images\nits state: asset-worker jobs show {job_id}")
}

/// The body of the job's terminal event.
async fn watched(mut watch: Watch, command: &Command, screen: &Screen) -> Result<Vec<u8>, Failure> {
    let progress = screen.progress(command.image_descriptions.len());
    loop {
        let seen = watch.next().await.map_err(|lost| {
            Failure::unreachable(format!("{lost}; the job goes on: asset-worker jobs show {}", command.job_id))
        })?;
        match seen {
            Watched::Event(body) => {
                let Some(seen) = Seen::read(&body).filter(|seen| seen.data.job_id == command.job_id) else { continue };
                if seen.is_terminal() {
                    return Ok(body);
                }
                progress.show(&seen);
            }
            Watched::DeadLetter { body, reason } => {
                let ours = serde_json::from_slice::<Command>(&body).is_ok_and(|dead| dead == *command);
                if ours {
                    return Err(Failure::Job(format!("job {} was refused: {reason}", command.job_id)));
                }
            }
        }
    }
}

/// Shows a terminal event, which decides what the program exits with.
pub(super) fn shown(terminal: &[u8], as_json: bool, screen: &Screen) -> Result<(), Failure> {
    let Some(seen) = Seen::read(terminal) else {
        return Err(Failure::Job("the terminal event cannot be read".to_owned()));
    };
    if as_json {
        screen.print(&String::from_utf8_lossy(terminal));
    } else {
        screen.print(&seen.report());
    }
    if seen.is_completed() { Ok(()) } else { Err(Failure::Job(format!("job {} has failed", seen.data.job_id))) }
}
