//! `generate`: the same work as the worker's, in this process and without a broker.

use async_trait::async_trait;
use broker::Routed;
use domain::event::Event;
use tracing::Instrument;

use super::exit::Failure;
use super::order::Order;
use super::screen::{Progress, Screen};
use super::submit::shown;
use super::tables::Seen;
use crate::bootstrap;
use crate::event_sink::{EventSink, PublishError};
use crate::job::{Envelope, JobOutcome, note_outcome};
use crate::settings::Settings;
use crate::shutdown::{Shutdown, Signals};
use crate::telemetry::{Metrics, trace};

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(flatten)]
    order: Order,
    /// Print the terminal event as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn generate(
    options: &Options,
    settings: &Settings,
    metrics: &Metrics,
    screen: &Screen,
) -> Result<(), Failure> {
    let command = options.order.command()?;
    settings.require_api_key()?;
    let signals = Signals::listen().map_err(|error| Failure::unreachable(format!("no signals ({error})")))?;
    let (store, storage) = bootstrap::open(settings).await?;
    let runner = bootstrap::job_runner(settings, store, storage, metrics, None)?;
    let progress = screen.progress(command.image_descriptions.len());
    let interrupted = || {
        Failure::Job(format!(
            "stopped; what is finished is kept, and the same command with the job id {} goes on from there",
            command.job_id
        ))
    };
    let mut told = false;
    // A second signal ends the process, so that nothing need be dropped in order.
    let shutdown = Shutdown { stop: signals.stop().clone(), ..Shutdown::default() };
    loop {
        let span = trace::job_span(&command);
        let running = runner.run(&command, Envelope::default(), &progress, &shutdown);
        let outcome = running.instrument(span.clone()).await;
        span.in_scope(|| note_outcome(outcome.as_ref()));
        match outcome? {
            JobOutcome::Ended(terminal) | JobOutcome::AlreadyEnded(terminal) => {
                drop(progress);
                return shown(terminal.event.body.as_bytes(), options.json, screen);
            }
            JobOutcome::RetryAfter(delay) => {
                screen.note(&format!("what is missing is tried again in {}", humantime::format_duration(delay)));
                tokio::select! {
                    () = signals.stop().cancelled() => return Err(interrupted()),
                    () = tokio::time::sleep(delay) => {}
                }
            }
            JobOutcome::Preempted => {}
            JobOutcome::Interrupted => return Err(interrupted()),
            JobOutcome::Leased | JobOutcome::LeaseLost => {
                if !told {
                    screen.note("another process works on this job, or was lost while it did; waiting for it");
                    told = true;
                }
                tokio::select! {
                    () = signals.stop().cancelled() => return Err(interrupted()),
                    () = tokio::time::sleep(settings.jobs.held_delay()) => {}
                }
            }
            JobOutcome::Conflict => {
                return Err(Failure::Usage(format!("--job-id: {} belongs to another command", command.job_id)));
            }
        }
    }
}

#[async_trait]
impl EventSink for Progress {
    async fn publish(&self, event: &Event) -> Result<Routed, PublishError> {
        if let Some(seen) = Seen::read(event.body.as_bytes()) {
            self.show(&seen);
        }
        Ok(Routed::Taken)
    }
}
