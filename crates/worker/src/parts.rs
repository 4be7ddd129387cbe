//! Opens what a job needs, as the settings say.

use std::sync::Arc;

use stability_client::{Client, ClientBuilder, Observer, RetryPolicy};

use crate::job::Workshop;
use crate::settings::{SettingError, Settings};
use crate::shared_quota::SharedQuota;
use crate::storage::{Storage, StorageError};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;
use crate::translation::Translator;

/// A part could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The database is away; it may come back.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The storage cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Opens the storage and the database, and applies the migrations.
///
/// # Errors
///
/// [`PartsError`].
pub async fn open(settings: &Settings) -> Result<(Store, Storage), PartsError> {
    let storage = Storage::open(&settings.storage_root)?;
    let store = Store::connect(&settings.database_url).await?;
    let applied = store.migrate().await?;
    if applied > 0 {
        tracing::info!(applied, "the database was migrated");
    }
    Ok((store, storage))
}

/// Brings together what jobs are made with. The `observer` hears of each request.
///
/// # Errors
///
/// [`SettingError`] where a key is missing, or cannot stand in a header.
pub fn workshop(
    settings: &Settings,
    store: Store,
    storage: Storage,
    metrics: &Metrics,
    observer: Arc<dyn Observer>,
) -> Result<Workshop, SettingError> {
    let translator = Translator::new(&settings.translation, store.clone())?;
    let quota = SharedQuota::new(store.clone(), settings.stability.rate_limit);
    let client = build(client_of(settings)?.quota(Arc::new(quota)).observer(observer))?;
    let api = &settings.stability.base_url;
    metrics.set_api(api.host_str().unwrap_or_default(), api.port_or_known_default().unwrap_or_default());
    Ok(Workshop::new(settings, store, storage, client, translator, metrics.clone()))
}

/// Makes a client of the API that knows no other workers: for a question, not for pictures.
///
/// # Errors
///
/// [`SettingError`] where there is no key, or one that cannot stand in a header.
pub fn client(settings: &Settings) -> Result<Client, SettingError> {
    build(client_of(settings)?)
}

fn build(builder: ClientBuilder) -> Result<Client, SettingError> {
    builder.build().map_err(|error| SettingError::unusable("STABILITY_API_KEY", &error))
}

fn client_of(settings: &Settings) -> Result<ClientBuilder, SettingError> {
    let stability = &settings.stability;
    let builder = Client::builder(settings.require_api_key()?.clone())
        .base_url(stability.base_url.clone())
        .request_timeout(stability.timeout)
        .max_in_flight(stability.max_concurrent)
        .retries(RetryPolicy {
            delays: stability.retry_delays.clone(),
            // One more generation is allowed for what cannot be used; the job sees to it.
            damaged: false,
            ..RetryPolicy::default()
        })
        .lockout(stability.lockout)
        .client_id("asset-worker", env!("CARGO_PKG_VERSION"));
    Ok(builder)
}
