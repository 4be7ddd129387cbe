//! `submit` of a file with one command a line: checks all, then publishes them in batches.
//!
//! A batch is recorded in the journal once the broker has confirmed it. An interrupted submission ends with its batch, and
//! its repetition continues with the next one. After a kill, the last batch may be published again, with the same job ids.

use std::path::Path;
use std::time::Duration;

use broker::{Broker, Publisher, SubmittedCommand, Topology};
use domain::command::Command;
use domain::trace::TraceContext;
use serde_json::json;
use tracing::info_span;
use uuid::Uuid;

use super::command_args::CommandArgs;
use super::command_list::CommandList;
use super::exit::CliError;
use super::gate_note::note_closed_gate;
use super::journal::{Header, Journal};
use super::screen::Screen;
use crate::failpoint;
use crate::settings::Settings;
use crate::shutdown::Signals;
use crate::telemetry::trace;

/// Commands of one batch.
const BATCH: usize = 500;

/// Submits the commands of a file that have not been submitted.
pub(super) async fn run(
    file: &Path,
    command_args: &CommandArgs,
    priority: Option<u8>,
    as_json: bool,
    settings: &Settings,
    screen: &Screen,
) -> Result<(), CliError> {
    let signals = Signals::listen()
        .map_err(|error| CliError::unreachable(format!("signal handlers cannot be installed ({error})")))?;
    let list = CommandList::read(file)?;
    let header = Header::new(&list, command_args.config_keys(), priority);
    let mut commands = list.parse(&header.config, |_| Uuid::now_v7())?;
    let ids = commands.iter().map(|command| command.job_id).collect();
    let mut journal = Journal::open(file, header, ids)?;
    if journal.is_resumed {
        commands = list.parse(&journal.header.config, |position| journal.ids[position])?;
    }
    let before = journal.confirmed;
    if before == commands.len() {
        screen.print_note(&format!(
            "all commands were submitted before; to submit them again, remove {}",
            journal.path().display()
        ));
    } else {
        let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
        let publisher = broker.create_publisher(Duration::ZERO).await?;
        journal.write_ids()?;
        let progress = screen.start_bar(commands.len(), "commands");
        progress.set_position(before);
        while journal.confirmed < commands.len() {
            if signals.stop_token().is_cancelled() {
                return Err(CliError::JobFailed(format!(
                    "stopped after {} of {} commands; repeat this to continue",
                    journal.confirmed,
                    commands.len()
                )));
            }
            let rest = &commands[journal.confirmed..];
            let batch = &rest[..rest.len().min(BATCH)];
            publish(&publisher, batch, journal.header.priority).await.map_err(|error| {
                CliError::unreachable(format!("{error}; repeat this to continue after {} commands", journal.confirmed))
            })?;
            failpoint::reach("after_batch").await;
            journal.record_confirmed(journal.confirmed + batch.len())?;
            progress.set_position(journal.confirmed);
        }
        drop(progress);
        broker.close().await;
        note_closed_gate(settings, screen).await;
    }
    screen.print(&format_submitted(&commands, before, &journal, as_json));
    Ok(())
}

/// Publishes the commands, each in a trace of its own, and waits for their confirms.
async fn publish(publisher: &Publisher, commands: &[Command], priority: Option<u8>) -> Result<(), broker::BrokerError> {
    let bodies: Vec<(String, Option<TraceContext>)> = commands
        .iter()
        .map(|command| {
            let span = info_span!("submit", job.id = %command.job_id, project.id = command.project_id);
            let body = serde_json::to_string(command).expect("a command serialises");
            (body, span.in_scope(trace::current_context))
        })
        .collect();
    let submitted: Vec<_> = commands
        .iter()
        .zip(&bodies)
        .map(|(command, (body, trace))| SubmittedCommand {
            job_id: command.job_id,
            body,
            priority,
            trace: trace.as_ref(),
        })
        .collect();
    publisher.submit_all(&submitted).await
}

fn format_submitted(commands: &[Command], before: usize, journal: &Journal, as_json: bool) -> String {
    let images: usize = commands.iter().map(|command| command.image_descriptions.len()).sum();
    let (total, ids_file) = (commands.len(), journal.path().display().to_string());
    if as_json {
        let submitted = total - before;
        return json!({"commands": total, "images": images, "submitted": submitted, "ids_file": ids_file}).to_string();
    }
    format!(
        "submitted: {} of {total} commands, {images} images in all\nthe ids of the jobs are in {ids_file}",
        total - before
    )
}
