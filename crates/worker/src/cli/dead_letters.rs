//! `dead-letters`: what nobody could deal with, and what becomes of it.

use broker::{Broker, DeadLetter, DeadLetters, Topology};
use clap::{ArgGroup, Subcommand};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::exit::Failure;
use super::screen::Screen;
use super::{jobs, tables};
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
enum Asked {
    /// The dead letters, the oldest first
    List {
        #[command(flatten)]
        choice: Choice,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// One dead letter with its headers and its body
    Show {
        /// Its id, as the list has it
        #[arg(value_name = "ID")]
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put dead letters back on the queue of commands, with their headers and why and when
    ///
    /// A job that has ended stays ended: its terminal event is sent again.
    Replay(Chosen),
    /// Throw dead letters away
    Discard(Chosen),
}

/// Which ones; all that are named must fit.
#[derive(Debug, Clone, clap::Args)]
struct Choice {
    /// The one with this id
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Those of this job
    #[arg(long, value_name = "UUID")]
    job: Option<Uuid>,
    /// Those whose reason begins so, such as "invalid"
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("which").required(true).multiple(true).args(["id", "job", "reason", "all"]))]
struct Chosen {
    #[command(flatten)]
    choice: Choice,
    /// All of them
    #[arg(long, conflicts_with_all = ["id", "job", "reason"])]
    all: bool,
}

impl Choice {
    fn fits(&self, letter: &DeadLetter) -> bool {
        self.id.as_ref().is_none_or(|id| *id == letter.id)
            && self.job.is_none_or(|job| letter.job_id == Some(job))
            && self.reason.as_ref().is_none_or(|reason| letter.reason.starts_with(reason.as_str()))
    }
}

/// A dead letter, for people.
#[derive(Serialize)]
struct Shown<'a> {
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

impl<'a> Shown<'a> {
    fn briefly(letter: &'a DeadLetter) -> Self {
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

    /// With its headers and its body: JSON as it is, anything else as text.
    fn wholly(letter: &'a DeadLetter) -> Self {
        let text = || Value::from(String::from_utf8_lossy(&letter.body).into_owned());
        let body = serde_json::from_slice(&letter.body).unwrap_or_else(|_| text());
        Self { headers: letter.headers(), body: Some(body), ..Self::briefly(letter) }
    }
}

pub(super) async fn dead_letters(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), Failure> {
    let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
    let held = broker.dead_letters().await?;
    let outcome = dealt_with(options, &held, screen).await;
    if held.more() {
        screen.note("more dead letters lie there than are held at once; do the same again for the others");
    }
    held.release().await;
    broker.close().await;
    outcome
}

async fn dealt_with(options: &Options, held: &DeadLetters, screen: &Screen) -> Result<(), Failure> {
    match &options.asked {
        Asked::List { choice, json } => {
            let letters: Vec<_> = held.letters().iter().filter(|letter| choice.fits(letter)).collect();
            let shown: Vec<_> = letters.into_iter().map(Shown::briefly).collect();
            if *json {
                screen.print(&jobs::as_json(&shown));
            } else if shown.is_empty() {
                screen.note("no dead letters");
            } else {
                let rows = shown.iter().map(|letter| {
                    let job = letter.job_id.map(|id| id.to_string()).unwrap_or_default();
                    [letter.id, letter.rejected_at.unwrap_or_default(), &job, letter.reason].map(str::to_owned)
                });
                screen.print(&tables::dead_letters(rows));
            }
        }
        Asked::Show { id, json } => {
            let letter = held.letters().iter().find(|letter| letter.id == *id);
            let letter = letter.ok_or_else(|| Failure::Usage(format!("{id} is no dead letter")))?;
            let whole = Shown::wholly(letter);
            if *json {
                screen.print(&jobs::as_json(&whole));
            } else {
                let mut lines = vec![
                    ("id", letter.id.clone()),
                    ("reason", letter.reason.clone()),
                    ("rejected", letter.rejected_at.clone().unwrap_or_else(|| "at an unknown time".to_owned())),
                ];
                lines.extend(letter.job_id.map(|job| ("job", job.to_string())));
                lines.extend(whole.headers.iter().map(|(name, value)| (name.as_str(), value.clone())));
                let body = whole.body.as_ref().map(jobs::as_json).unwrap_or_default();
                screen.print(&format!("{}\n{body}", tables::lines(&lines)));
            }
        }
        Asked::Replay(Chosen { choice, .. }) => {
            let replayed = held.replay(|letter| choice.fits(letter)).await?;
            some(replayed)?;
            screen.print(&format!("replayed: {replayed}"));
        }
        Asked::Discard(Chosen { choice, .. }) => {
            let discarded = held.discard(|letter| choice.fits(letter)).await?;
            some(discarded)?;
            screen.print(&format!("discarded: {discarded}"));
        }
    }
    Ok(())
}

fn some(count: usize) -> Result<(), Failure> {
    if count == 0 { Err(Failure::Usage("no dead letter fits".to_owned())) } else { Ok(()) }
}
