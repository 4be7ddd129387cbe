//! `purge`: removes ended jobs, and on request files, unused translations and dead letters.

use std::time::Duration;

use broker::{Broker, DeadLetter, Topology};
use serde::Serialize;
use store::{PurgeFilter, Store};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::sleep;

use super::database::open_store;
use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::tables;
use super::time_ago::time_ago;
use crate::purge::{PurgeError, PurgeTurn, Purged};
use crate::settings::Settings;
use crate::shutdown::Signals;
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
    // Nothing is removed if one of the services cannot be used.
    let topology = Topology::new(settings.jobs.queue_delays());
    let broker = if options.dead_letters { Some(Broker::connect(&settings.amqp_url, &topology).await?) } else { None };
    let storage = if options.files { Some(open_storage(settings)?) } else { None };
    let (purged, translations) = if options.dry_run {
        let unused = store.count_unused_translations(before);
        let translations = if options.translations { Some(unused.await?) } else { None };
        (Purged { count: store.count_purgeable(filter).await?, skipped: 0 }, translations)
    } else {
        let turn = take_turn(&store, screen).await?;
        let signals = Signals::listen()
            .map_err(|error| CliError::unreachable(format!("signal handlers cannot be installed ({error})")))?;
        let removing = remove_rows(&turn, &store, options, filter, storage.as_ref(), screen);
        // The batch in progress is left to the next purge, as after a crash.
        let stopped = || Err(CliError::JobFailed("stopped; repeat this to continue".to_owned()));
        let removed = signals.stop_token().run_until_cancelled(removing).await.unwrap_or_else(stopped);
        turn.end().await;
        removed?
    };
    let dead_letters = match broker {
        Some(broker) => {
            let discarded = discard_dead_letters(&broker, before, options.dry_run).await;
            broker.close().await;
            Some(discarded?)
        }
        None => None,
    };
    let Purged { count, skipped } = purged;
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
    if skipped > 0 {
        let message = format!("{skipped} jobs were not purged: their files could not be removed; the log says why");
        return Err(CliError::unreachable(message));
    }
    Ok(())
}

/// Opens the storage that has the files. With another one, the rows would be removed and the files would stay.
fn open_storage(settings: &Settings) -> Result<Storage, CliError> {
    let storage = Storage::open_existing(&settings.storage_root)?;
    storage.ok_or_else(|| {
        CliError::unreachable("ASSET_STORAGE_URL: the folder does not exist; set it to the URL that the workers use")
    })
}

async fn remove_rows(
    turn: &PurgeTurn<'_>,
    store: &Store,
    options: &Options,
    filter: PurgeFilter,
    storage: Option<&Storage>,
    screen: &Screen,
) -> Result<(Purged, Option<u64>), CliError> {
    turn.forget_purged_jobs().await?;
    let total = store.count_purgeable_jobs(filter).await?;
    let bar = screen.start_bar(usize::try_from(total).unwrap_or(usize::MAX), "jobs");
    let mut done = 0;
    let report = |jobs: u64| {
        done += usize::try_from(jobs).unwrap_or_default();
        bar.set_position(done);
    };
    let purged = turn.purge(filter, storage, report).await?;
    drop(bar);
    let unused = turn.remove_unused_translations(filter.ended_before);
    let translations = if options.translations { Some(unused.await?) } else { None };
    Ok((purged, translations))
}

/// Waits until no other process purges.
async fn take_turn<'a>(store: &'a Store, screen: &Screen) -> Result<PurgeTurn<'a>, CliError> {
    let mut noted = false;
    loop {
        if let Some(turn) = PurgeTurn::take(store).await? {
            return Ok(turn);
        }
        if !noted {
            screen.print_note("another process is purging, or was killed while it was; waiting for the turn");
            noted = true;
        }
        sleep(TURN_INTERVAL).await;
    }
}

/// Discards, or only counts, dead letters that were rejected before. The broker hands out a bounded amount at once.
async fn discard_dead_letters(broker: &Broker, before: OffsetDateTime, dry_run: bool) -> Result<usize, CliError> {
    let is_old = |letter: &DeadLetter| rejected_at(letter).is_some_and(|rejected_at| rejected_at < before);
    let mut total = 0;
    loop {
        let held = broker.hold_dead_letters().await?;
        let discarded = if dry_run {
            Ok(held.letters().iter().filter(|letter| is_old(letter)).count())
        } else {
            held.discard(is_old).await
        };
        let has_more = held.has_more();
        held.release().await;
        let discarded = discarded?;
        total += discarded;
        if dry_run || !has_more || discarded == 0 {
            return Ok(total);
        }
    }
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
            PurgeError::SlowStorage | PurgeError::TurnLost => Self::unreachable(format!("{error}; repeat this")),
        }
    }
}
