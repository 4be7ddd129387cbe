//! Retention: removes ended jobs, and their files if asked, in batches beside working workers.
//!
//! One process at a time purges. After each batch it pauses, so that the jobs of workers are hardly slowed down.

use std::convert::Infallible;
use std::time::Duration;

use store::{PurgeCount, PurgeFilter, PurgeableJob, Store, StoreError};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use uuid::Uuid;

use crate::error_chain::error_chain;
use crate::failpoint;
use crate::settings::Settings;
use crate::storage::{Storage, StorageError};

/// Interval of the purges of a worker.
const INTERVAL: Duration = Duration::from_hours(1);
/// How long a process has the turn to purge: longer than a batch and its pause. If it is lost, another one purges after
/// this time.
const TURN: Duration = Duration::from_secs(30);
/// The most jobs of one batch.
const BATCH_JOBS: u64 = 100;
/// No further job is added to a batch with this many images.
const BATCH_IMAGES: u64 = 500;
/// The pause after a batch, as a multiple of the time that the batch took.
const PAUSE_FACTOR: u32 = 4;
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Why a purge ended early. What was purged before stays so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Storage(#[from] StorageError),
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
        Ok(turn.prolong().await?.then_some(turn))
    }

    async fn prolong(&self) -> Result<bool, StoreError> {
        self.store.take_purge_turn(self.holder, TURN).await
    }

    /// Removes all jobs that the filter selects, and their files if a storage is given. Reports what each batch removed.
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
        report: impl Fn(PurgeCount),
    ) -> Result<PurgeCount, PurgeError> {
        let mut total = PurgeCount::default();
        let mut last: Option<PurgeableJob> = None;
        // A turn that was lost is another process's, which goes on.
        while self.prolong().await? {
            let started_at = Instant::now();
            let mut batch = limit_images(self.store.read_purgeable_jobs(filter, last.as_ref(), BATCH_JOBS).await?);
            if batch.is_empty() {
                break;
            }
            if let Some(storage) = files {
                let paths: Vec<String> =
                    batch.iter().flat_map(|job| &job.files).map(|(path, _)| path.clone()).collect();
                storage.delete_all(&paths).await?;
            }
            failpoint::reach("after_purged_files").await;
            let ids: Vec<Uuid> = batch.iter().map(|job| job.job_id).collect();
            self.store.purge_jobs(&ids).await?;
            let count = batch.iter().map(count).fold(PurgeCount::default(), PurgeCount::plus);
            total = total.plus(count);
            report(count);
            last = batch.pop();
            sleep((started_at.elapsed() * PAUSE_FACTOR).min(MAX_PAUSE)).await;
        }
        Ok(total)
    }

    /// Lets another process purge.
    pub(crate) async fn end(self) {
        // If this fails, the turn ends by itself.
        let _ = self.store.end_purge_turn(self.holder).await;
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
        if let Err(error) = purge_once(settings, &store, &storage).await {
            warn!(error = error_chain(&error), "purge of ended jobs failed; it is repeated in an hour");
        }
        sleep(INTERVAL).await;
    }
}

async fn purge_once(settings: &Settings, store: &Store, storage: &Storage) -> Result<(), PurgeError> {
    store.forget_purged_jobs().await?;
    let Some(retention) = settings.retention else { return Ok(()) };
    let Some(turn) = PurgeTurn::take(store).await? else { return Ok(()) };
    let filter = PurgeFilter { ended_before: OffsetDateTime::now_utc() - retention, project_id: None };
    let files = settings.retention_files.then_some(storage);
    let purged = turn.purge(filter, files, |_| {}).await;
    turn.end().await;
    let PurgeCount { jobs, images, files, .. } = purged?;
    if jobs > 0 {
        info!(jobs, images, files = if settings.retention_files { files } else { 0 }, "ended jobs purged");
    }
    Ok(())
}
