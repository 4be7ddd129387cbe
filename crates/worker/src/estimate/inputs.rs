//! What an estimate depends on beside the command: database, files, queue, account.

use std::time::Duration;

use broker::{Broker, BrokerError, QueueState};
use domain::money::MicroUsd;
use schemars::JsonSchema;
use serde::Serialize;
use store::{JobDuration, KeyHash, Store, StoreError};
use tokio::time::timeout;

use super::Warning;
use crate::bootstrap;
use crate::cost_policy::{CostPolicy, format_usd};
use crate::error_chain::error_chain;
use crate::gate::{self, GateReason};
use crate::settings::Settings;
use crate::storage::Storage;

/// The code of the warning that the daily budget does not pay for all images.
pub(crate) const BUDGET_SHORTAGE: &str = "daily_budget_short";
/// Limit for reading from one service, which may not be reachable.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of jobs whose durations are read.
const MEASURED_JOBS: u64 = 50;

/// What is known at the time of an estimate; `None` if it could not be read.
pub(crate) struct Inputs {
    pub(super) store: Option<Store>,
    pub(super) storage: Option<Storage>,
    pub(super) queue: Option<QueueState>,
    /// Why the account gate is closed.
    pub(super) gate: Option<Vec<GateReason>>,
    pub(super) budget: Budget,
    pub(super) durations: Vec<JobDuration>,
    /// The account's credits, if they are checked before a job starts.
    pub(super) credits: Option<f64>,
    /// Why something is not known.
    pub(super) unknown: Vec<String>,
}

/// The daily budget of all workers, in US dollars.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
#[expect(clippy::struct_field_names, reason = "the names are those of the JSON")]
pub(crate) struct Budget {
    /// `WORKER_DAILY_BUDGET_USD`; `None` if it is not set.
    pub(crate) limit_usd: Option<f64>,
    /// What has been spent today (UTC). `None` without a database.
    pub(crate) spent_usd: Option<f64>,
    /// What is left of the limit.
    pub(crate) left_usd: Option<f64>,
}

impl Budget {
    /// Reads what has been spent today.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub(crate) async fn read(settings: &Settings, store: &Store) -> Result<Self, StoreError> {
        let limit_usd = settings.jobs.daily_budget_usd;
        let spent = store.read_spent_today().await?;
        let left = limit_usd.map(|limit| MicroUsd((MicroUsd::from_usd(limit).0 - spent.0).max(0)));
        Ok(Self { limit_usd, spent_usd: Some(spent.usd()), left_usd: left.map(MicroUsd::usd) })
    }

    /// A warning if the budget does not pay for this many images today.
    pub(crate) fn find_shortage(&self, images: u32, price: MicroUsd) -> Option<Warning> {
        let left = self.left_usd?;
        let affordable = price.affordable_count(MicroUsd::from_usd(left))?;
        (affordable < images).then(|| {
            let message = format!(
                "USD {} of the daily budget is left, for {affordable} of {images} images; the others wait until 00:00 UTC",
                format_usd(left)
            );
            Warning::new(BUDGET_SHORTAGE, message)
        })
    }
}

impl Inputs {
    /// Nothing is known.
    #[cfg(test)]
    pub(super) fn unknown() -> Self {
        let (store, storage, queue, gate, credits) = (None, None, None, None, None);
        let (durations, unknown) = (Vec::new(), Vec::new());
        Self { store, storage, queue, gate, budget: Budget::default(), durations, credits, unknown }
    }

    /// Reads what the settings of this process give access to. Creates no database, folder or queue.
    pub(crate) async fn read(settings: &Settings) -> Self {
        let mut unknown = Vec::new();
        let mut note = |what: &str, cause: String| unknown.push(format!("{what}: {cause}"));
        let store = match within_limit(Store::connect_existing(&settings.database_url)).await {
            Ok(Some(store)) => Some(store),
            Ok(None) => {
                note("DATABASE_URL", "there is no database".to_owned());
                None
            }
            Err(cause) => {
                note("DATABASE_URL", cause);
                None
            }
        };
        let storage = match Storage::open_existing(&settings.storage_root) {
            Ok(Some(storage)) => Some(storage),
            Ok(None) => {
                note("ASSET_STORAGE_URL", "the folder does not exist".to_owned());
                None
            }
            Err(error) => {
                note("ASSET_STORAGE_URL", error_chain(&error));
                None
            }
        };
        let queue = match within_limit(read_queue(settings)).await {
            Ok(queue) => Some(queue),
            Err(cause) => {
                note("AMQP_URL", cause);
                None
            }
        };
        let limit_usd = settings.jobs.daily_budget_usd;
        let mut inputs = Self {
            store: None,
            storage,
            queue,
            gate: None,
            budget: Budget { limit_usd, ..Budget::default() },
            durations: Vec::new(),
            credits: None,
            unknown: Vec::new(),
        };
        if let Some(store) = store {
            let key = settings.stability.api_key.as_ref().map(KeyHash::new);
            match within_limit(inputs.read_database(settings, key.as_ref(), &store)).await {
                Ok(()) => inputs.store = Some(store),
                Err(cause) => note("DATABASE_URL", cause),
            }
        }
        if settings.stability.check_balance {
            match within_limit(read_credits(settings)).await {
                Ok(Some(credits)) => inputs.credits = Some(credits),
                Ok(None) => note("STABILITY_API_KEY", "it is not set".to_owned()),
                Err(cause) => note("STABILITY_API_KEY", cause),
            }
        }
        inputs.unknown = unknown;
        inputs
    }

    /// Reads the database of a server; the other inputs it knows already.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub(crate) async fn of_server(
        settings: &Settings,
        key: &KeyHash,
        store: Store,
        storage: Storage,
        queue: Option<QueueState>,
        credits: Option<f64>,
    ) -> Result<Self, StoreError> {
        let mut unknown = Vec::new();
        let mut note = |what: &str, is_known: bool, cause: &str| {
            if !is_known {
                unknown.push(format!("{what}: {cause}"));
            }
        };
        note("AMQP_URL", queue.is_some(), "the broker is not connected");
        let credits = credits.filter(|_| settings.stability.check_balance);
        let checks_credits = settings.stability.check_balance;
        note("STABILITY_API_KEY", credits.is_some() || !checks_credits, "the credits have not been read yet");
        let mut inputs = Self {
            store: None,
            storage: Some(storage),
            queue,
            gate: None,
            budget: Budget { limit_usd: settings.jobs.daily_budget_usd, ..Budget::default() },
            durations: Vec::new(),
            credits,
            unknown,
        };
        inputs.read_database(settings, Some(key), &store).await?;
        inputs.store = Some(store);
        Ok(inputs)
    }

    async fn read_database(
        &mut self,
        settings: &Settings,
        key: Option<&KeyHash>,
        store: &Store,
    ) -> Result<(), StoreError> {
        self.gate = Some(gate::read_reasons(store, CostPolicy::new(settings), key).await?);
        self.budget = Budget::read(settings, store).await?;
        self.durations = store.read_job_durations(MEASURED_JOBS).await?;
        Ok(())
    }

    /// Why a command would wait on the queue.
    pub(super) fn delays(&self) -> Vec<Warning> {
        let reasons = self.gate.iter().flatten();
        let closed: Vec<Warning> = reasons
            .map(|reason| {
                Warning::new(
                    reason.name(),
                    format!("the account gate is closed: {reason}; the command waits on the queue"),
                )
            })
            .collect();
        if !closed.is_empty() || self.workers() != Some(0) {
            return closed;
        }
        vec![Warning::new("no_worker", "no worker takes commands from the queue; the command waits there")]
    }

    /// Whether the account gate is known to be closed.
    pub(super) fn is_gate_closed(&self) -> bool {
        self.gate.as_ref().is_some_and(|reasons| !reasons.is_empty())
    }

    /// Number of workers that take commands from the queue.
    pub(super) fn workers(&self) -> Option<u32> {
        self.queue.map(|queue| match queue {
            QueueState::Present { consumers, .. } => consumers,
            QueueState::Missing => 0,
        })
    }

    /// Number of commands that wait on the queue.
    pub(super) fn waiting_commands(&self) -> Option<u32> {
        self.queue.map(|queue| match queue {
            QueueState::Present { messages, .. } => messages,
            QueueState::Missing => 0,
        })
    }
}

/// Turns an error, or the end of the time limit, into a sentence.
async fn within_limit<T, E: std::error::Error>(reading: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match timeout(READ_TIMEOUT, reading).await {
        Ok(read) => read.map_err(|error| error_chain(&error)),
        Err(_) => Err(format!("no response within {READ_TIMEOUT:?}")),
    }
}

async fn read_queue(settings: &Settings) -> Result<QueueState, BrokerError> {
    let broker = Broker::connect_without_topology(&settings.amqp_url).await?;
    let queue = broker.read_command_queue_state().await;
    broker.close().await;
    queue
}

/// The account's credits; `None` without an API key.
async fn read_credits(settings: &Settings) -> Result<Option<f64>, stability_client::Error> {
    let Ok(client) = bootstrap::standalone_client(settings) else { return Ok(None) };
    client.balance().await.map(|balance| Some(balance.credits))
}
