//! `dead-letters`: lists, shows, replays and discards dead-lettered commands.

use std::time::Duration;

use broker::{Broker, DeadLetter, DeadLetters, Topology};
use clap::ArgGroup;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::tables;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// List dead letters, oldest first
    List {
        #[command(flatten)]
        filter: DeadLetterFilter,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its headers and body
    Show {
        /// Id of the dead letter, as printed by `list`
        #[arg(value_name = "ID")]
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Publish dead letters to the command queue again
    ///
    /// Keeps the headers, but replaces the reason and time of the rejection by the former reason and the time of the
    /// replay (`x-replayed-reason`, `x-replayed-at`). A job that has ended is not run again: its terminal event is
    /// published again.
    Replay(Selection),
    /// Delete dead letters
    Discard(Selection),
}

/// Selects dead letters; all given conditions must match.
#[derive(Debug, Clone, clap::Args)]
struct DeadLetterFilter {
    /// Select the dead letter with this id
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Select dead letters of the job with this id
    #[arg(long, value_name = "UUID")]
    job: Option<Uuid>,
    /// Select dead letters whose reason starts with this text, for example "invalid"
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["id", "job", "reason", "all"]))]
struct Selection {
    #[command(flatten)]
    filter: DeadLetterFilter,
    /// Select all dead letters
    #[arg(long, conflicts_with_all = ["id", "job", "reason"])]
    all: bool,
}

impl DeadLetterFilter {
    fn matches(&self, letter: &DeadLetter) -> bool {
        self.id.as_ref().is_none_or(|id| *id == letter.id)
            && self.job.is_none_or(|job| letter.job_id == Some(job))
            && self.reason.as_ref().is_none_or(|reason| letter.reason.starts_with(reason.as_str()))
    }
}

/// Printable form of a dead letter.
#[derive(Serialize)]
struct DeadLetterView<'a> {
    id: &'a str,
    job_id: Option<Uuid>,
    reason: &'a str,
    rejected_at: Option<&'a str>,
    size_bytes: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Value>,
}

impl<'a> DeadLetterView<'a> {
    fn summary(letter: &'a DeadLetter) -> Self {
        Self {
            id: &letter.id,
            job_id: letter.job_id,
            reason: &letter.reason,
            rejected_at: letter.rejected_at.as_deref(),
            size_bytes: letter.body.len(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// Includes headers and body: a JSON body as JSON, any other body as text.
    fn details(letter: &'a DeadLetter) -> Self {
        let text = || Value::from(String::from_utf8_lossy(&letter.body).into_owned());
        let body = serde_json::from_slice(&letter.body).unwrap_or_else(|_| text());
        Self { headers: letter.headers(), body: Some(body), ..Self::summary(letter) }
    }
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
    let dead_letters = broker.hold_dead_letters().await?;
    let outcome = execute(options, &broker, &dead_letters, screen).await;
    if dead_letters.has_more() {
        screen.print_note("more dead letters exist than are read at once; repeat the command for the others");
    }
    dead_letters.release().await;
    broker.close().await;
    outcome
}

async fn execute(options: &Options, broker: &Broker, held: &DeadLetters, screen: &Screen) -> Result<(), CliError> {
    match &options.subcommand {
        Subcommand::List { filter: choice, json } => {
            let letters: Vec<_> = held.letters().iter().filter(|letter| choice.matches(letter)).collect();
            let views: Vec<_> = letters.into_iter().map(DeadLetterView::summary).collect();
            if *json {
                screen.print(&to_json(&views));
            } else if views.is_empty() {
                screen.print_note("no dead letters");
            } else {
                let rows = views.iter().map(|letter| {
                    let job = letter.job_id.map(|id| id.to_string()).unwrap_or_default();
                    [letter.id, letter.rejected_at.unwrap_or_default(), &job, letter.reason].map(str::to_owned)
                });
                screen.print(&tables::dead_letter_table(rows));
            }
        }
        Subcommand::Show { id, json } => {
            let letter = held.letters().iter().find(|letter| letter.id == *id);
            let letter = letter.ok_or_else(|| CliError::Usage(format!("no dead letter has the id {id}")))?;
            let details = DeadLetterView::details(letter);
            if *json {
                screen.print(&to_json(&details));
            } else {
                let mut lines = vec![
                    ("id", letter.id.clone()),
                    ("reason", letter.reason.clone()),
                    ("rejected", letter.rejected_at.clone().unwrap_or_else(|| "at an unknown time".to_owned())),
                ];
                lines.extend(letter.job_id.map(|job| ("job", job.to_string())));
                lines.extend(details.headers.iter().map(|(name, value)| (name.as_str(), value.clone())));
                let body = details.body.as_ref().map(to_json).unwrap_or_default();
                screen.print(&format!("{}\n{body}", tables::format_pairs(&lines)));
            }
        }
        Subcommand::Replay(Selection { filter: choice, .. }) => {
            let publisher = broker.create_publisher(Duration::ZERO).await?;
            let replayed = held.replay(&publisher, |letter| choice.matches(letter)).await?;
            require_match(replayed)?;
            screen.print(&format!("replayed: {replayed}"));
        }
        Subcommand::Discard(Selection { filter: choice, .. }) => {
            let discarded = held.discard(|letter| choice.matches(letter)).await?;
            require_match(discarded)?;
            screen.print(&format!("discarded: {discarded}"));
        }
    }
    Ok(())
}

fn require_match(count: usize) -> Result<(), CliError> {
    if count == 0 { Err(CliError::Usage("no dead letter matches".to_owned())) } else { Ok(()) }
}
