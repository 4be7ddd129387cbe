//! Retention: removes ended jobs, and their files if asked, in batches beside working workers.
//!
//! One process at a time purges. After each batch it pauses, so that the jobs of workers are hardly slowed down.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use store::{PurgeCount, PurgeFilter, PurgeableJob, Store, StoreError};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use crate::error_chain::error_chain;
use crate::failpoint;
use crate::settings::Settings;
use crate::storage::{Storage, StorageError};

/// Interval of the purges of a worker.
const INTERVAL: Duration = Duration::from_hours(1);
/// How long a process has the turn to purge. If it is lost, another one purges after this time.
const TURN: Duration = Duration::from_mins(2);
/// Time limit for removing the files of a batch: they must not be removed after the turn, because another process may have
/// removed their rows, and a new job may have taken their paths.
const FILES_TIMEOUT: Duration = Duration::from_mins(1);
/// The most jobs of one batch.
const BATCH_JOBS: u64 = 100;
/// No further job is added to a batch with this many images.
const BATCH_IMAGES: u64 = 500;
/// The most rows of one statement that removes what is kept of purged jobs, or translations.
const BATCH_ROWS: u64 = 500;
/// The pause after a batch, as a multiple of the time that the batch took.
const PAUSE_FACTOR: u32 = 9;
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Why a purge ended early. What was purged before stays so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No file of a batch could be removed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the files of {BATCH_JOBS} jobs could not be removed within {FILES_TIMEOUT:?}")]
    SlowStorage,
    #[error("another process has taken the turn to purge")]
    TurnLost,
}

/// What a purge has removed.
#[derive(Debug, Default)]
pub(crate) struct Purged {
    pub(crate) count: PurgeCount,
    /// Jobs that stay because a file of them could not be removed.
    pub(crate) skipped: u64,
}

/// The turn to purge, which one process has at a time.
pub(crate) struct PurgeTurn<'a> {
    store: &'a Store,
    holder: Uuid,
}

impl<'a> PurgeTurn<'a> {
    /// Takes the turn; `None` if another process has it.
    pub(crate) async fn take(store: &'a Store) -> Result<Option<Self>, StoreError> {
        let turn = Self { store, holder: Uuid::now_v7() };
        Ok(store.take_purge_turn(turn.holder, TURN).await?.then_some(turn))
    }

    async fn prolong(&self) -> Result<(), PurgeError> {
        if self.store.take_purge_turn(self.holder, TURN).await? { Ok(()) } else { Err(PurgeError::TurnLost) }
    }

    /// Removes all jobs that the filter selects, and their files if a storage is given. Reports how many jobs each batch
    /// has removed.
    ///
    /// The files of a batch are removed before its rows: after a crash in between, the next purge removes the rows. Until
    /// then the rows are no cache hits, because their files are missing.
    ///
    /// # Errors
    ///
    /// [`PurgeError`]; the jobs of completed batches are purged.
    pub(crate) async fn purge(
        &self,
        filter: PurgeFilter,
        files: Option<&Storage>,
        mut report: impl FnMut(u64),
    ) -> Result<Purged, PurgeError> {
        let mut purged = Purged::default();
        let mut last: Option<PurgeableJob> = None;
        loop {
            let started_at = Instant::now();
            let mut batch = limit_images(self.store.read_purgeable_jobs(filter, last.as_ref(), BATCH_JOBS).await?);
            if batch.is_empty() {
                return Ok(purged);
            }
            self.prolong().await?;
            let kept = match files {
                Some(storage) => remove_files(storage, &batch).await?,
                None => HashSet::new(),
            };
            failpoint::reach("after_purged_files").await;
            let ids: Vec<Uuid> = batch.iter().map(|job| job.job_id).filter(|job_id| !kept.contains(job_id)).collect();
            let removed = self.store.purge_jobs(&ids).await?;
            let counts = batch.iter().filter(|job| removed.contains(&job.job_id)).map(count);
            purged.count = counts.fold(purged.count, PurgeCount::plus);
            purged.skipped += kept.len() as u64;
            report(removed.len() as u64);
            last = batch.pop();
            pause_after(started_at).await;
        }
    }

    /// Forgets the ids of jobs that were purged long ago.
    ///
    /// # Errors
    ///
    /// [`PurgeError`]; some may be forgotten.
    pub(crate) async fn forget_purged_jobs(&self) -> Result<(), PurgeError> {
        loop {
            let started_at = Instant::now();
            self.prolong().await?;
            if self.store.forget_purged_jobs(BATCH_ROWS).await? == 0 {
                return Ok(());
            }
            pause_after(started_at).await;
        }
    }

    /// Removes translations that no job has used since then. Returns their number.
    ///
    /// # Errors
    ///
    /// [`PurgeError`]; some may be removed.
    pub(crate) async fn remove_unused_translations(&self, since: OffsetDateTime) -> Result<u64, PurgeError> {
        let mut removed = 0;
        loop {
            let started_at = Instant::now();
            self.prolong().await?;
            let rows = self.store.delete_unused_translations(since, BATCH_ROWS).await?;
            if rows == 0 {
                return Ok(removed);
            }
            removed += rows;
            pause_after(started_at).await;
        }
    }

    /// Lets another process purge.
    pub(crate) async fn end(self) {
        // If this fails, the turn ends by itself.
        let _ = self.store.end_purge_turn(self.holder).await;
    }
}

async fn pause_after(started_at: Instant) {
    sleep((started_at.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE)).await;
}

/// Removes the files of jobs. Returns the jobs of which a file could not be removed; an error if these are all.
async fn remove_files(storage: &Storage, batch: &[PurgeableJob]) -> Result<HashSet<Uuid>, PurgeError> {
    let paths: Vec<String> = batch.iter().flat_map(|job| &job.files).map(|(path, _)| path.clone()).collect();
    let failed = timeout(FILES_TIMEOUT, storage.delete_all(&paths)).await.map_err(|_| PurgeError::SlowStorage)?;
    let mut kept = HashSet::new();
    for (path, error) in &failed {
        let has_file = |job: &&PurgeableJob| job.files.iter().any(|(own, _)| own == path);
        let Some(job) = batch.iter().find(has_file) else { continue };
        warn!(job.id = %job.job_id, path, error = error_chain(error), "file not removed; its job is not purged");
        kept.insert(job.job_id);
    }
    let all_failed = failed.len() == paths.len();
    match failed.into_iter().next() {
        Some((_, error)) if all_failed => Err(error.into()),
        _ => Ok(kept),
    }
}

/// The first jobs, until they have [`BATCH_IMAGES`] images.
fn limit_images(jobs: Vec<PurgeableJob>) -> Vec<PurgeableJob> {
    let mut images = 0;
    let fits = |job: &PurgeableJob| {
        let fits = images < BATCH_IMAGES;
        images += job.images;
        fits
    };
    jobs.into_iter().take_while(fits).collect()
}

fn count(job: &PurgeableJob) -> PurgeCount {
    let bytes = job.files.iter().map(|(_, bytes)| bytes).sum();
    PurgeCount { jobs: 1, images: job.images, files: job.files.len() as u64, bytes }
}

/// Purges by the settings of a worker, and forgets jobs that were purged long ago: at its start, and then every hour.
pub(crate) async fn purge_hourly(settings: &Settings, store: Store, storage: Storage) -> Infallible {
    loop {
        if let Err(error) = purge_in_turn(settings, &store, &storage).await {
            warn!(error = error_chain(&error), "purge of ended jobs failed; it is repeated in an hour");
        }
        sleep(INTERVAL).await;
    }
}

/// Purges unless another process does.
async fn purge_in_turn(settings: &Settings, store: &Store, storage: &Storage) -> Result<(), PurgeError> {
    let Some(turn) = PurgeTurn::take(store).await? else { return Ok(()) };
    let forgotten = turn.forget_purged_jobs().await;
    let purged = match settings.retention {
        Some(retention) => {
            let filter = PurgeFilter { ended_before: OffsetDateTime::now_utc() - retention, project_id: None };
            turn.purge(filter, settings.retention_files.then_some(storage), |_| {}).await
        }
        None => Ok(Purged::default()),
    };
    turn.end().await;
    let Purged { count: PurgeCount { jobs, images, .. }, skipped } = purged?;
    if jobs > 0 || skipped > 0 {
        info!(jobs, images, skipped, with_files = settings.retention_files, "ended jobs purged");
    }
    forgotten
}
