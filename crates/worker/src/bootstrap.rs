//! Wiring at start: opens what a job needs, as the settings say.

use std::sync::Arc;

use domain::rules::Rules;
use picture::Glance;
use stability_client::{CFG_SCALE, Client, ClientBuilder, Engine, Observer, RetryPolicy, STEPS, StylePreset};
use store::{Store, StoreError};

use crate::image::ImageParts;
use crate::image_pool::ImagePool;
use crate::job::JobRunner;
use crate::settings::{SettingError, Settings};
use crate::shared_quota::SharedQuota;
use crate::storage::{Storage, StorageError};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::names;
use crate::translation::Translator;

/// Database or storage could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The database is away; it may come back.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The storage cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Opens the storage and the database, and applies the migrations.
pub async fn open(settings: &Settings) -> Result<(Store, Storage), BootstrapError> {
    let storage = Storage::open(&settings.storage_root)?;
    let store = Store::connect(&settings.database_url).await?;
    let applied = store.migrate().await?;
    if applied > 0 {
        tracing::info!(applied, "the database was migrated");
    }
    Ok((store, storage))
}

/// The limits of a command: what the API behind this worker takes.
pub fn rules() -> Rules {
    Rules {
        engines: Engine::ALL.iter().map(|engine| engine.id()).collect(),
        style_presets: StylePreset::ALL.iter().map(|preset| preset.as_str()).collect(),
        cfg_scale: CFG_SCALE,
        steps: STEPS,
    }
}

/// Builds the [`JobRunner`]. Besides the metrics, `observer` is notified of each request.
///
/// # Errors
///
/// [`SettingError`] where a key is missing, or cannot stand in a header.
pub fn job_runner(
    settings: &Settings,
    store: Store,
    storage: Storage,
    metrics: &Metrics,
    observer: Option<Arc<dyn Observer>>,
) -> Result<JobRunner, SettingError> {
    let translator = Translator::new(&settings.translation, store.clone())?;
    let quota = SharedQuota::new(store.clone(), settings.stability.rate_limit);
    let builder = client_of(settings)?.quota(Arc::new(quota)).observer(Arc::new(metrics.clone()));
    let client = build(observer.into_iter().fold(builder, ClientBuilder::observer))?;
    let api = &settings.stability.base_url;
    metrics.set_api(api.host_str().unwrap_or_default(), api.port_or_known_default().unwrap_or_default());
    let pool = ImagePool::new(settings.image, Glance { min_sharpness: settings.min_sharpness });
    show_bounds(metrics, &client, &pool, settings);
    let (metrics, lease_length) = (metrics.clone(), settings.jobs.lease);
    let parts = ImageParts { client, pool, storage, store, metrics, lease_length };
    Ok(JobRunner::new(settings, parts, translator))
}

/// Shows in gauges how many requests and pictures are in flight, and how many may be.
fn show_bounds(metrics: &Metrics, client: &Client, pool: &ImagePool, settings: &Settings) {
    let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    let (client, limit) = (client.clone(), count(settings.stability.max_concurrent.get()));
    metrics.gauge(&names::REQUESTS_IN_FLIGHT, &[], move || Some(count(client.in_flight())));
    metrics.gauge(&names::REQUESTS_LIMIT, &[], move || Some(limit));
    let (pool, limit) = (pool.clone(), count(pool.slots()));
    metrics.gauge(&names::FINISHER_IN_FLIGHT, &[], move || Some(count(pool.in_flight())));
    metrics.gauge(&names::FINISHER_LIMIT, &[], move || Some(limit));
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
        .retries(RetryPolicy { delays: stability.retry_delays.clone(), ..RetryPolicy::default() })
        .lockout(stability.lockout)
        .client_id("asset-worker", env!("CARGO_PKG_VERSION"));
    Ok(builder)
}
