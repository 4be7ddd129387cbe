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
/// Longer than for the database, because the storage check writes a file.
const STORAGE_INTERVAL: Duration = Duration::from_secs(5);
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
    storage: Mutex<Option<CachedCheck>>,
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
        let (database, storage, account) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { dependencies, database, storage, account }
    }

    pub(super) async fn check_database(&self) -> Result<(), String> {
        check_cached(&self.database, DATABASE_INTERVAL, with_timeout(self.dependencies.store.ping())).await
    }

    pub(super) async fn check_storage(&self) -> Result<(), String> {
        check_cached(&self.storage, STORAGE_INTERVAL, with_timeout(self.dependencies.storage.check_writable())).await
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

/// Returns the last result if it is younger than `interval`, else runs the check; concurrent callers share one run.
async fn check_cached(
    last: &Mutex<Option<CachedCheck>>,
    interval: Duration,
    check: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let mut last = last.lock().await;
    if let Some(CachedCheck { checked_at: at, result: found }) = &*last
        && at.elapsed() < interval
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
