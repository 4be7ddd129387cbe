//! `purge`: removes ended jobs, and on request files, unused translations and dead letters.

use std::time::Duration;

use broker::{Broker, DeadLetter, Topology};
use serde::Serialize;
use store::{PurgeCount, PurgeFilter, Store};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;

use super::database::open_store;
use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::tables;
use super::time_ago::time_ago;
use crate::purge::{PurgeError, PurgeTurn};
use crate::settings::Settings;
use crate::storage::Storage;

/// Interval at which the turn of another process is asked for.
const TURN_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Options {
    /// Age: the time since jobs ended, translations were used or dead letters were rejected, for example 30d; 0s means
    /// all
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Duration,
    /// Remove only jobs of the project with this id
    #[arg(long, value_name = "ID", conflicts_with_all = ["translations", "dead_letters"])]
    project: Option<i64>,
    /// Also remove the image files of the jobs
    #[arg(long)]
    files: bool,
    /// Also remove translations that no job has used for that time, to the hour
    #[arg(long)]
    translations: bool,
    /// Also discard dead letters that were rejected before
    #[arg(long)]
    dead_letters: bool,
    /// Remove nothing; print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was removed, or would be.
#[derive(Debug, Serialize)]
struct PurgeReport {
    dry_run: bool,
    jobs: u64,
    images: u64,
    /// 0 without `--files`.
    files: u64,
    file_bytes: u64,
    /// `None` without `--translations`.
    #[serde(skip_serializing_if = "Option::is_none")]
    translations: Option<u64>,
    /// `None` without `--dead-letters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letters: Option<usize>,
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let before = time_ago(options.older_than);
    let filter = PurgeFilter { ended_before: before, project_id: options.project };
    let store = open_store(settings).await?;
    let count = if options.dry_run {
        store.count_purgeable(filter).await?
    } else {
        purge_jobs(&store, options, filter, settings, screen).await?
    };
    let translations = match (options.translations, options.dry_run) {
        (false, _) => None,
        (true, true) => Some(store.count_unused_translations(before).await?),
        (true, false) => Some(store.delete_unused_translations(before).await?),
    };
    let dead_letters =
        if options.dead_letters { Some(discard_dead_letters(before, options.dry_run, settings).await?) } else { None };
    let report = PurgeReport {
        dry_run: options.dry_run,
        jobs: count.jobs,
        images: count.images,
        files: if options.files { count.files } else { 0 },
        file_bytes: if options.files { count.bytes } else { 0 },
        translations,
        dead_letters,
    };
    screen.print(&if options.json { to_json(&report) } else { format_report(&report) });
    Ok(())
}

async fn purge_jobs(
    store: &Store,
    options: &Options,
    filter: PurgeFilter,
    settings: &Settings,
    screen: &Screen,
) -> Result<PurgeCount, CliError> {
    let storage = if options.files { Some(Storage::open(&settings.storage_root)?) } else { None };
    let turn = take_turn(store, screen).await?;
    store.forget_purged_jobs().await?;
    let total = usize::try_from(store.count_purgeable(filter).await?.jobs).unwrap_or(usize::MAX);
    let bar = screen.start_bar(total, "jobs");
    let done = std::sync::atomic::AtomicUsize::new(0);
    let report = |batch: PurgeCount| {
        let jobs = usize::try_from(batch.jobs).unwrap_or(usize::MAX);
        bar.set_position(done.fetch_add(jobs, std::sync::atomic::Ordering::Relaxed) + jobs);
    };
    let purged = turn.purge(filter, storage.as_ref(), report).await;
    turn.end().await;
    Ok(purged?)
}

/// Waits until no other process purges.
async fn take_turn<'a>(store: &'a Store, screen: &Screen) -> Result<PurgeTurn<'a>, CliError> {
    let mut noted = false;
    loop {
        if let Some(turn) = PurgeTurn::take(store).await? {
            return Ok(turn);
        }
        if !noted {
            screen.print_note("another process is purging; waiting for its end");
            noted = true;
        }
        sleep(TURN_INTERVAL).await;
    }
}

/// Discards, or only counts, dead letters that were rejected before.
async fn discard_dead_letters(before: OffsetDateTime, dry_run: bool, settings: &Settings) -> Result<usize, CliError> {
    let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
    let held = broker.hold_dead_letters().await?;
    let is_old = |letter: &DeadLetter| rejected_at(letter).is_some_and(|rejected_at| rejected_at < before);
    let discarded = if dry_run {
        Ok(held.letters().iter().filter(|letter| is_old(letter)).count())
    } else {
        held.discard(is_old).await
    };
    held.release().await;
    broker.close().await;
    Ok(discarded?)
}

/// When a dead letter was rejected; `None` if it does not say when.
fn rejected_at(letter: &DeadLetter) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(letter.rejected_at.as_deref()?, &Rfc3339).ok()
}

fn format_report(report: &PurgeReport) -> String {
    let mut pairs = vec![
        ("jobs", report.jobs.to_string()),
        ("images", report.images.to_string()),
        ("files", format!("{} ({})", report.files, tables::format_size(report.file_bytes))),
    ];
    pairs.extend(report.translations.map(|count| ("translations", count.to_string())));
    pairs.extend(report.dead_letters.map(|count| ("dead letters", count.to_string())));
    let title = if report.dry_run { "would be removed" } else { "removed" };
    format!("{title}\n{}", tables::format_pairs(&pairs))
}

impl From<PurgeError> for CliError {
    fn from(error: PurgeError) -> Self {
        match error {
            PurgeError::Store(error) => error.into(),
            PurgeError::Storage(error) => error.into(),
        }
    }
}
