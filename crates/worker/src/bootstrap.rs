//! Startup wiring: opens and builds from the settings what jobs need.

use std::sync::Arc;

use domain::rules::Rules;
use picture::QualityCheck;
use stability_client::{CFG_SCALE, Client, ClientBuilder, Engine, RetryPolicy, STEPS, StylePreset};
use store::{Store, StoreError};

use crate::api_key::StabilityKey;
use crate::cost_policy::CostPolicy;
use crate::gate::AccountGate;
use crate::image::ImageResources;
use crate::image_pool::ImagePool;
use crate::job::JobRunner;
use crate::outage::UnstoredImages;
use crate::settings::{SettingError, Settings};
use crate::shared_quota::SharedQuota;
use crate::storage::{Storage, StorageError};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::names;
use crate::translation::Translator;

/// The database or the storage could not be opened at start.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The database cannot be reached or migrated; a later attempt may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The storage cannot be opened; a later attempt may succeed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Opens the storage and the database, and applies pending migrations.
pub async fn open(settings: &Settings) -> Result<(Store, Storage), BootstrapError> {
    let storage = Storage::open(&settings.storage_root)?;
    Ok((open_database(settings).await?, storage))
}

/// Opens the database and applies pending migrations.
pub(crate) async fn open_database(settings: &Settings) -> Result<Store, StoreError> {
    let store = Store::connect_with(&settings.database_url, settings.database_max_connections).await?;
    let applied = store.migrate().await?;
    if applied > 0 {
        tracing::info!(applied, "database migrations applied");
    }
    Ok(store)
}

/// Returns the validation limits of commands: the values that the Stability API accepts.
pub fn rules() -> Rules {
    Rules {
        engines: Engine::ALL.iter().map(Engine::id).collect(),
        engines_without_fast_upscaler: Engine::ALL
            .iter()
            .filter(|engine| !engine.fits_fast_upscaler())
            .map(Engine::id)
            .collect(),
        style_presets: StylePreset::ALL.iter().map(|preset| preset.as_str()).collect(),
        cfg_scale: CFG_SCALE,
        steps: STEPS,
    }
}

/// Builds the [`JobRunner`].
///
/// # Errors
///
/// [`SettingError`] if an API key is missing or is not a valid HTTP header value.
pub fn build_job_runner(
    settings: &Settings,
    store: Store,
    storage: Storage,
    metrics: &Metrics,
) -> Result<JobRunner, SettingError> {
    let translator = Translator::new(&settings.translation, store.clone())?;
    let quota = SharedQuota::new(store.clone(), settings.stability.rate_limit);
    let client = build_client(client_builder(settings)?.quota(Arc::new(quota)).observer(Arc::new(metrics.clone())))?;
    let key_file = settings.stability.api_key_file.as_ref();
    let key = StabilityKey::new(client.clone(), settings.require_api_key()?, key_file);
    let gate = AccountGate::new(store.clone(), client.clone(), key, CostPolicy::new(settings));
    let api = &settings.stability.base_url;
    metrics.set_api_address(api.host_str().unwrap_or_default(), api.port_or_known_default().unwrap_or_default());
    let pool = ImagePool::new(settings.image, QualityCheck { min_sharpness: settings.min_sharpness });
    let (metrics, unstored, lease_duration) = (metrics.clone(), UnstoredImages::default(), settings.jobs.lease);
    let resources = ImageResources { client, pool, storage, store, metrics, unstored, lease_duration };
    Ok(JobRunner::new(settings, resources, gate, translator))
}

/// Registers gauges for the requests and images in flight of a worker, and for their limits.
pub(crate) fn register_concurrency_gauges(metrics: &Metrics, runner: &JobRunner, settings: &Settings) {
    let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    let (client, pool) = (runner.client().clone(), runner.image_pool().clone());
    let limit = count(settings.stability.max_concurrent.get());
    metrics.register_gauge(&names::REQUESTS_IN_FLIGHT, &[], move || Some(count(client.in_flight())));
    metrics.register_gauge(&names::REQUESTS_LIMIT, &[], move || Some(limit));
    let limit = count(pool.capacity());
    metrics.register_gauge(&names::IMAGE_POOL_IN_FLIGHT, &[], move || Some(count(pool.in_flight())));
    metrics.register_gauge(&names::IMAGE_POOL_LIMIT, &[], move || Some(limit));
}

/// Builds an API client without the shared quota: for account checks, not for image generation.
///
/// # Errors
///
/// [`SettingError`] if the API key is missing or is not a valid HTTP header value.
pub fn standalone_client(settings: &Settings) -> Result<Client, SettingError> {
    build_client(client_builder(settings)?)
}

fn build_client(builder: ClientBuilder) -> Result<Client, SettingError> {
    builder.build().map_err(|error| SettingError::unusable("STABILITY_API_KEY", &error))
}

fn client_builder(settings: &Settings) -> Result<ClientBuilder, SettingError> {
    let stability = &settings.stability;
    let builder = Client::builder(settings.require_api_key()?.clone())
        .base_url(stability.base_url.clone())
        .request_timeout(stability.timeout)
        .max_in_flight(stability.max_concurrent)
        .retry_policy(RetryPolicy::default().delays(stability.retry_delays.clone()))
        .lockout(stability.lockout)
        // An operator must see what was refused.
        .log_refused_prompts(true)
        .client_id("asset-worker", env!("CARGO_PKG_VERSION"));
    Ok(builder)
}

#[cfg(test)]
mod tests;
