//! Checks of database, storage and API key, each at most once per interval for all callers together.

use std::time::Duration;

use domain::money::MicroUsd;
use stability_client::{Client, Error};
use store::Store;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error_chain::error_chain;
use crate::storage::Storage;

/// A check that takes longer has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval at which the gauges are updated.
pub(super) const GAUGE_INTERVAL: Duration = Duration::from_secs(5);
const DATABASE_INTERVAL: Duration = Duration::from_secs(1);
const STORAGE_READ_INTERVAL: Duration = Duration::from_secs(5);
/// Writes are rare: in a versioned bucket each one would remain.
const STORAGE_WRITE_INTERVAL: Duration = Duration::from_mins(5);
/// Interval of the writes while they fail.
const FAILED_WRITE_INTERVAL: Duration = Duration::from_secs(30);
/// Interval at which the account's credits are read.
const ACCEPTED_KEY_INTERVAL: Duration = Duration::from_mins(5);
/// A rejected key is checked more often: it may have been fixed in the account.
const REJECTED_KEY_INTERVAL: Duration = Duration::from_mins(1);

pub(crate) struct HealthDependencies {
    pub(crate) store: Store,
    pub(crate) storage: Storage,
    pub(crate) client: Client,
    /// Whether a daily budget is set; only then is the day's spending read.
    pub(crate) has_daily_budget: bool,
}

pub(super) struct HealthChecks {
    dependencies: HealthDependencies,
    database: Mutex<Option<CachedCheck>>,
    storage_read: Mutex<Option<CachedCheck>>,
    storage_write: Mutex<Option<CachedCheck>>,
    account: Mutex<AccountStatus>,
}

#[derive(Clone)]
struct CachedCheck {
    checked_at: Instant,
    result: Result<(), String>,
}

/// What the last balance request has shown.
#[derive(Default)]
struct AccountStatus {
    checked_at: Option<Instant>,
    /// Why the key is rejected; `None` if it is accepted or if nothing is known about it.
    refusal: Option<String>,
    credits: Option<f64>,
}

impl HealthChecks {
    pub(super) fn new(dependencies: HealthDependencies) -> Self {
        let (database, storage_read, storage_write) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { dependencies, database, storage_read, storage_write, account: Mutex::default() }
    }

    pub(super) async fn check_database(&self) -> Result<(), String> {
        let check = with_timeout(self.dependencies.store.ping());
        check_cached(&self.database, [DATABASE_INTERVAL; 2], check).await
    }

    /// Whether the storage can be read now, and whether the last write succeeded.
    pub(super) async fn check_storage(&self) -> Result<(), String> {
        let storage = &self.dependencies.storage;
        let read = with_timeout(storage.check_readable());
        check_cached(&self.storage_read, [STORAGE_READ_INTERVAL; 2], read).await?;
        let write = with_timeout(storage.check_writable());
        check_cached(&self.storage_write, [STORAGE_WRITE_INTERVAL, FAILED_WRITE_INTERVAL], write).await
    }

    /// Whether the API accepts the key; a key about which nothing is known counts as accepted.
    pub(super) async fn check_key(&self) -> Result<(), String> {
        let mut account = self.account.lock().await;
        let interval = if account.refusal.is_none() { ACCEPTED_KEY_INTERVAL } else { REJECTED_KEY_INTERVAL };
        if account.checked_at.is_none_or(|at| at.elapsed() >= interval) {
            self.check_account(&mut account).await;
        }
        account.refusal.clone().map_or(Ok(()), Err)
    }

    /// Requests the account's balance, except during a rate-limit pause and if the database cannot tell whether there
    /// is one.
    async fn check_account(&self, account: &mut AccountStatus) {
        let paused = tokio::time::timeout(CHECK_TIMEOUT, self.dependencies.store.read_remaining_pause()).await;
        if !matches!(paused, Ok(Ok(Duration::ZERO))) {
            return;
        }
        let balance = tokio::time::timeout(CHECK_TIMEOUT, self.dependencies.client.balance()).await;
        account.checked_at = Some(Instant::now());
        match balance {
            Ok(Ok(balance)) => (account.refusal, account.credits) = (None, Some(balance.credits)),
            Ok(Err(error @ Error::Unauthorized(_))) => account.refusal = Some(error_chain(&error)),
            // The result says nothing about the key.
            Ok(Err(_)) | Err(_) => {}
        }
    }

    pub(super) async fn credits(&self) -> Option<f64> {
        self.account.lock().await.credits
    }

    pub(super) async fn read_spent_today(&self) -> Option<MicroUsd> {
        if !self.dependencies.has_daily_budget {
            return None;
        }
        tokio::time::timeout(CHECK_TIMEOUT, self.dependencies.store.read_spent_today()).await.ok()?.ok()
    }
}

/// Returns the last result if it is younger than the interval after a success or after a failure, else runs the check.
/// Concurrent callers share one run.
async fn check_cached(
    last: &Mutex<Option<CachedCheck>>,
    [after_success, after_failure]: [Duration; 2],
    check: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let mut last = last.lock().await;
    if let Some(CachedCheck { checked_at: at, result: found }) = &*last
        && at.elapsed() < if found.is_ok() { after_success } else { after_failure }
    {
        return found.clone();
    }
    let result = check.await;
    *last = Some(CachedCheck { checked_at: Instant::now(), result: result.clone() });
    result
}

async fn with_timeout<T, E: std::error::Error>(check: impl Future<Output = Result<T, E>>) -> Result<(), String> {
    match tokio::time::timeout(CHECK_TIMEOUT, check).await {
        Ok(result) => result.map(drop).map_err(|error| error_chain(&error)),
        Err(_) => Err(format!("no answer within {CHECK_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn storage_is_written_every_five_minutes_and_sooner_after_a_failure() {
        let (last, runs) = (Mutex::default(), AtomicU32::new(0));
        let check = async |result: Result<(), String>| {
            let run = async {
                runs.fetch_add(1, Ordering::Relaxed);
                result
            };
            let result = check_cached(&last, [STORAGE_WRITE_INTERVAL, FAILED_WRITE_INTERVAL], run).await;
            (result.is_ok(), runs.load(Ordering::Relaxed))
        };
        let broken = || Err("read-only".to_owned());
        assert_eq!(check(Ok(())).await, (true, 1));
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(check(broken()).await, (true, 1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(check(broken()).await, (false, 2));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(check(Ok(())).await, (false, 2));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(check(Ok(())).await, (true, 3));
    }
}
