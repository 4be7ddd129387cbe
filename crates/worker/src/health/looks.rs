//! Looks at database, storage and key: each at most once in its interval, however many ask.

use std::sync::{Mutex as Plain, MutexGuard, PoisonError};
use std::time::Duration;

use domain::money::MicroUsd;
use stability_client::{Client, Error};
use store::Store;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error_chain::error_chain;
use crate::storage::Storage;

/// A part that has not answered by then is not well.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks of the gauges.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
const DATABASE_INTERVAL: Duration = Duration::from_secs(1);
/// It writes a file.
const STORAGE_INTERVAL: Duration = Duration::from_secs(5);
/// A key that was accepted is one until a request says otherwise; the look is for the account's credits.
const ACCEPTED_INTERVAL: Duration = Duration::from_mins(5);
/// One that was not may be mended at the account.
const REFUSED_INTERVAL: Duration = Duration::from_mins(1);

/// What is looked at.
pub(crate) struct Looked {
    pub(crate) store: Store,
    pub(crate) storage: Storage,
    pub(crate) client: Client,
    /// Whether the day's spending is of interest.
    pub(crate) budget: bool,
}

pub(super) struct Looks {
    parts: Looked,
    database: Mutex<Option<Look>>,
    storage: Mutex<Option<Look>>,
    key: Mutex<Option<Instant>>,
    known: Plain<Known>,
}

#[derive(Clone)]
struct Look {
    at: Instant,
    found: Result<(), String>,
}

/// What is known of the account.
struct Known {
    /// Why the key is not accepted. One of which nothing is known has not been refused.
    refused: Option<String>,
    /// When a picture's request found it accepted, which counts for more than whether the account may be looked at.
    used: Option<Instant>,
    credits: Option<f64>,
}

impl Looks {
    pub(super) fn new(parts: Looked) -> Self {
        let (database, storage, key) = (Mutex::default(), Mutex::default(), Mutex::default());
        let known = Plain::new(Known { refused: None, used: None, credits: None });
        Self { parts, database, storage, key, known }
    }

    pub(super) async fn database(&self) -> Result<(), String> {
        shared(&self.database, DATABASE_INTERVAL, in_time(self.parts.store.ping())).await
    }

    pub(super) async fn storage(&self) -> Result<(), String> {
        shared(&self.storage, STORAGE_INTERVAL, in_time(self.parts.storage.check())).await
    }

    /// Whether the API takes the key, as far as that is known.
    pub(super) async fn key(&self) -> Result<(), String> {
        let mut looked = self.key.lock().await;
        let interval = if self.known().refused.is_none() { ACCEPTED_INTERVAL } else { REFUSED_INTERVAL };
        if looked.is_none_or(|at| at.elapsed() >= interval) && self.look_at_account().await {
            *looked = Some(Instant::now());
        }
        self.known().refused.clone().map_or(Ok(()), Err)
    }

    /// Asks for the account's credits, and says whether it asked: while the account is locked out nobody asks for anything.
    async fn look_at_account(&self) -> bool {
        let paused = tokio::time::timeout(TIMEOUT, self.parts.store.requests_paused_for()).await;
        if !matches!(paused, Ok(Ok(Duration::ZERO))) {
            return false;
        }
        let balance = tokio::time::timeout(TIMEOUT, self.parts.client.balance()).await;
        let mut known = self.known();
        match balance {
            Ok(Ok(balance)) => (known.refused, known.credits) = (None, Some(balance.credits)),
            Ok(Err(error @ Error::Unauthorized(_)))
                if known.used.is_none_or(|at| at.elapsed() >= ACCEPTED_INTERVAL) =>
            {
                known.refused = Some(error_chain(&error));
            }
            // Nothing was found out.
            Ok(Err(_)) | Err(_) => {}
        }
        true
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_key(&self, accepted: bool) {
        let mut known = self.known();
        known.refused = (!accepted).then(|| "a request was refused: the key is not accepted".to_owned());
        known.used = accepted.then(Instant::now);
    }

    pub(super) fn credits(&self) -> Option<f64> {
        self.known().credits
    }

    pub(super) async fn spent_today(&self) -> Option<MicroUsd> {
        if !self.parts.budget {
            return None;
        }
        tokio::time::timeout(TIMEOUT, self.parts.store.spent_today()).await.ok()?.ok()
    }
}

/// What was found last, or what is found now where that is too long ago. Whoever comes meanwhile waits for the same look.
async fn shared(
    last: &Mutex<Option<Look>>,
    interval: Duration,
    look: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let mut last = last.lock().await;
    if let Some(Look { at, found }) = &*last
        && at.elapsed() < interval
    {
        return found.clone();
    }
    let found = look.await;
    *last = Some(Look { at: Instant::now(), found: found.clone() });
    found
}

async fn in_time<T, E: std::error::Error>(look: impl Future<Output = Result<T, E>>) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, look).await {
        Ok(found) => found.map(drop).map_err(|error| error_chain(&error)),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}
