//! Checks of database, storage and API key, each at most once per interval for all callers together.

use std::sync::{Mutex as Plain, MutexGuard, PoisonError};
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
/// An accepted key counts as accepted until a request is rejected; this check mainly updates the account's credits.
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
    account_checked_at: Mutex<Option<Instant>>,
    account: Plain<AccountStatus>,
}

#[derive(Clone)]
struct CachedCheck {
    checked_at: Instant,
    result: Result<(), String>,
}

/// What is known about the API key and the account.
struct AccountStatus {
    /// Why the key is rejected; `None` if it is accepted or if nothing is known about it.
    refusal: Option<String>,
    /// When an image request was last accepted; takes precedence over a rejected balance request for five minutes.
    accepted_at: Option<Instant>,
    credits: Option<f64>,
}

impl HealthChecks {
    pub(super) fn new(dependencies: HealthDependencies) -> Self {
        let (database, storage, account_checked_at) = (Mutex::default(), Mutex::default(), Mutex::default());
        let account = Plain::new(AccountStatus { refusal: None, accepted_at: None, credits: None });
        Self { dependencies, database, storage, account_checked_at, account }
    }

    pub(super) async fn check_database(&self) -> Result<(), String> {
        check_cached(&self.database, DATABASE_INTERVAL, with_timeout(self.dependencies.store.ping())).await
    }

    pub(super) async fn check_storage(&self) -> Result<(), String> {
        check_cached(&self.storage, STORAGE_INTERVAL, with_timeout(self.dependencies.storage.check_writable())).await
    }

    /// Whether the API accepts the key; a key about which nothing is known counts as accepted.
    pub(super) async fn check_key(&self) -> Result<(), String> {
        let mut checked_at = self.account_checked_at.lock().await;
        let interval =
            if self.lock_account().refusal.is_none() { ACCEPTED_KEY_INTERVAL } else { REJECTED_KEY_INTERVAL };
        if checked_at.is_none_or(|at| at.elapsed() >= interval) && self.check_account().await {
            *checked_at = Some(Instant::now());
        }
        self.lock_account().refusal.clone().map_or(Ok(()), Err)
    }

    /// Requests the account's balance. Returns `false` if no request was sent: during a rate-limit pause, or if the
    /// database cannot tell whether there is one.
    async fn check_account(&self) -> bool {
        let paused = tokio::time::timeout(CHECK_TIMEOUT, self.dependencies.store.read_remaining_pause()).await;
        if !matches!(paused, Ok(Ok(Duration::ZERO))) {
            return false;
        }
        let balance = tokio::time::timeout(CHECK_TIMEOUT, self.dependencies.client.balance()).await;
        let mut known = self.lock_account();
        match balance {
            Ok(Ok(balance)) => (known.refusal, known.credits) = (None, Some(balance.credits)),
            Ok(Err(error @ Error::Unauthorized(_)))
                if known.accepted_at.is_none_or(|at| at.elapsed() >= ACCEPTED_KEY_INTERVAL) =>
            {
                known.refusal = Some(error_chain(&error));
            }
            // The result says nothing about the key.
            Ok(Err(_)) | Err(_) => {}
        }
        true
    }

    fn lock_account(&self) -> MutexGuard<'_, AccountStatus> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record_key_status(&self, accepted: bool) {
        let mut known = self.lock_account();
        known.refusal = (!accepted).then(|| "a request was rejected: the API does not accept the key".to_owned());
        known.accepted_at = accepted.then(Instant::now);
    }

    pub(super) fn credits(&self) -> Option<f64> {
        self.lock_account().credits
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
