//! Looks at database, storage and key: each at most once in its interval, however many ask.

use std::sync::{Mutex as Plain, PoisonError};
use std::time::Duration;

use stability_client::{Client, Error};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::causes;
use crate::storage::Storage;
use crate::store::{MicroUsd, Store};

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
    key: Mutex<Option<Look>>,
    /// What requests found since the last look at the key.
    key_told: Plain<Option<bool>>,
    credits: Plain<Option<f64>>,
}

#[derive(Clone)]
struct Look {
    at: Instant,
    found: Result<(), String>,
}

impl Looks {
    pub(super) fn new(parts: Looked) -> Self {
        let (database, storage, key) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { parts, database, storage, key, key_told: Plain::default(), credits: Plain::default() }
    }

    pub(super) async fn database(&self) -> Result<(), String> {
        shared(&self.database, |_| DATABASE_INTERVAL, in_time(self.parts.store.ping())).await
    }

    pub(super) async fn storage(&self) -> Result<(), String> {
        shared(&self.storage, |_| STORAGE_INTERVAL, in_time(self.parts.storage.check())).await
    }

    /// Whether the API takes the key. One that is not known for want of an answer has not been refused.
    pub(super) async fn key(&self) -> Result<(), String> {
        let told = self.key_told.lock().unwrap_or_else(PoisonError::into_inner).take();
        match told {
            Some(false) => {
                let found = Err("a request was refused: the key is not accepted".to_owned());
                *self.key.lock().await = Some(Look { at: Instant::now(), found: found.clone() });
                return found;
            }
            // Looked at anew.
            Some(true) => drop(self.key.lock().await.take_if(|look| look.found.is_err())),
            None => {}
        }
        let interval = |found: &Result<(), String>| if found.is_ok() { ACCEPTED_INTERVAL } else { REFUSED_INTERVAL };
        shared(&self.key, interval, async {
            let balance = tokio::time::timeout(TIMEOUT, self.parts.client.balance()).await;
            let credits =
                balance.as_ref().ok().and_then(|balance| balance.as_ref().ok()).map(|balance| balance.credits);
            *self.credits.lock().unwrap_or_else(PoisonError::into_inner) = credits;
            match balance {
                Ok(Err(error @ Error::Unauthorized(_))) => Err(causes::joined(&error)),
                Ok(Ok(_) | Err(_)) | Err(_) => Ok(()),
            }
        })
        .await
    }

    pub(super) fn note_key(&self, accepted: bool) {
        *self.key_told.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
    }

    pub(super) fn credits(&self) -> Option<f64> {
        *self.credits.lock().unwrap_or_else(PoisonError::into_inner)
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
    interval: impl Fn(&Result<(), String>) -> Duration,
    look: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let mut last = last.lock().await;
    if let Some(Look { at, found }) = &*last
        && at.elapsed() < interval(found)
    {
        return found.clone();
    }
    let found = look.await;
    *last = Some(Look { at: Instant::now(), found: found.clone() });
    found
}

async fn in_time<T, E: std::error::Error>(look: impl Future<Output = Result<T, E>>) -> Result<(), String> {
    match tokio::time::timeout(TIMEOUT, look).await {
        Ok(found) => found.map(drop).map_err(|error| causes::joined(&error)),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}
