//! All settings of the worker, read once at start.
//!
//! Settings are a pure function of their source, so that tests can pass a map. Only [`Settings::from_env`] reads the
//! environment. An empty value counts as unset. A variable that may hold a secret can also be read from the file that
//! `NAME_FILE` names.

mod api;
mod reader;
mod telemetry;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use domain::image_spec::ImageSpec;
use domain::prompt::needs_translation;
use domain::style::Style;
use gemini_client::GeminiSettings;
use secrecy::SecretString;
use stability_client::{Credits, Engine};
use url::Url;

use crate::phrase_book::PhraseBook;
pub use api::ApiSettings;
use reader::Reader;
pub use reader::{SecretFile, SettingError};
pub use telemetry::{OtlpProtocol, TelemetrySettings};

/// The longest retention, in seconds: ten years.
const MAX_RETENTION_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;
/// The `User-Agent` of requests to the Gemini API.
const USER_AGENT: &str = concat!("asset-worker/", env!("CARGO_PKG_VERSION"));

/// An environment variable that the worker reads: one row of the settings table in docs/configuration.md.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The name of the environment variable.
    pub name: &'static str,
    /// The default as docs/configuration.md shows it; empty if there is no fixed default.
    pub default: &'static str,
    /// Whether the value may hold a secret; such a setting can also be read from the file that `NAME_FILE` names.
    pub secret: bool,
}

const fn setting(name: &'static str, default: &'static str) -> Setting {
    Setting { name, default, secret: false }
}

const fn secret(name: &'static str, default: &'static str) -> Setting {
    Setting { name, default, secret: true }
}

/// All settings except the `AWS_*` and `OTEL_*` variables. A test compares the table of docs/configuration.md with this
/// list.
pub const ALL: &[Setting] = &[
    secret("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"),
    secret("DATABASE_URL", "sqlite://data/asset-worker.db?mode=rwc"),
    setting("DATABASE_MAX_CONNECTIONS", "8"),
    setting("ASSET_STORAGE_URL", ""),
    secret("STABILITY_API_KEY", ""),
    setting("STABILITY_BASE_URL", "https://api.stability.ai/"),
    setting("STABILITY_MAX_CONCURRENT", "4"),
    setting("STABILITY_RATE_LIMIT", "150"),
    setting("STABILITY_TIMEOUT", "60s"),
    setting("STABILITY_RETRY_DELAYS", "2s,5s,10s"),
    setting("STABILITY_LOCKOUT", "60s"),
    setting("STABILITY_ENGINE", "stable-diffusion-xl-1024-v1-0"),
    setting("STABILITY_COST_PER_IMAGE_USD", ""),
    setting("STABILITY_CHECK_BALANCE", "false"),
    setting("IMAGE_WIDTH", "1920"),
    setting("IMAGE_HEIGHT", "1080"),
    setting("IMAGE_CFG_SCALE", "8.0"),
    setting("IMAGE_STEPS", "40"),
    setting("IMAGE_MAX_BYTES", "10485760"),
    setting("IMAGE_MIN_SHARPNESS", "0"),
    secret("GEMINI_API_KEY", ""),
    setting("GEMINI_BASE_URL", "https://generativelanguage.googleapis.com/"),
    setting("GEMINI_MODEL", "gemini-flash-latest"),
    setting("GEMINI_TIMEOUT", "60s"),
    setting("GEMINI_RETRY_DELAYS", "2s,5s,10s"),
    setting("TRANSLATION_PHRASE_BOOK", ""),
    setting("WORKER_MAX_IN_FLIGHT_JOBS", "2"),
    setting("WORKER_JOB_MAX_ATTEMPTS", "3"),
    setting("WORKER_JOB_RETRY_DELAYS", "30s,2m"),
    setting("WORKER_JOB_SLICE", "10m"),
    setting("WORKER_LEASE", "12s"),
    setting("WORKER_DAILY_BUDGET_USD", ""),
    setting("WORKER_SHUTDOWN_GRACE", "25s"),
    setting("WORKER_RETENTION", ""),
    setting("WORKER_RETENTION_FILES", "false"),
    setting("CELERY_TASKS", ""),
    setting("CELERY_EVENTS", "false"),
    setting("HTTP_ADDR", "0.0.0.0:8080"),
    setting("API_ADDR", "127.0.0.1:8088"),
    secret("API_TOKEN", ""),
    secret("API_READ_TOKEN", ""),
    setting("API_TRUSTED_PROXIES", ""),
    setting("API_CORS_ORIGINS", ""),
    setting("API_CACHE_DIR", "data/cache"),
    setting("API_CACHE_BYTES", "268435456"),
    setting("LOG_FORMAT", ""),
    setting("RUST_LOG", "info"),
];

/// Format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Plain text, for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where image files are stored.
#[derive(Debug, Clone)]
pub enum StorageRoot {
    /// A local folder; the path is absolute.
    Folder(PathBuf),
    /// A bucket of S3 or of an S3-compatible server.
    Bucket {
        /// The bucket's name.
        bucket: String,
        /// Prefix of all object keys, without slashes at its ends; may be empty.
        prefix: String,
        /// The variables of [`AWS_VARIABLES`] that are set, with their values.
        aws_variables: Vec<(&'static str, SecretString)>,
    },
}

/// The AWS variables that are read if files are stored in a bucket. Their meaning is defined by AWS.
pub const AWS_VARIABLES: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ALLOW_HTTP",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
];

/// The validated settings of a process.
#[derive(Debug, Clone)]
pub struct Settings {
    /// URL of RabbitMQ.
    pub amqp_url: SecretString,
    /// URL of the database, PostgreSQL or SQLite.
    pub database_url: SecretString,
    /// Maximum number of connections to the database.
    pub database_max_connections: u32,
    /// Where image files are stored.
    pub storage_root: StorageRoot,
    /// Use of Stability's API.
    pub stability: StabilitySettings,
    /// Width, height and maximum file size of every stored image.
    pub image: ImageSpec,
    /// Images whose sharpness (variance of the Laplacian) is lower are rejected as blurred; 0 disables the check.
    pub min_sharpness: f64,
    /// Translation of descriptions into English.
    pub translation: TranslationSettings,
    /// `cfg_scale` of jobs that set none.
    pub cfg_scale: f64,
    /// `steps` of jobs that set none.
    pub steps: u8,
    /// Concurrency, attempts, lease and budget of jobs.
    pub jobs: JobSettings,
    /// Ended jobs are removed after this time; `None`: never.
    pub retention: Option<Duration>,
    /// Whether the files of removed jobs are removed too.
    pub retention_files: bool,
    /// Names of tasks that are accepted in Celery's message format; none: its messages are refused.
    pub celery_tasks: Vec<String>,
    /// Whether the worker sends Celery's events and answers its remote control.
    pub celery_events: bool,
    /// Grace period: from SIGTERM until requests in flight are dropped.
    pub shutdown_grace: Duration,
    /// Listen address of `/livez`, `/readyz` and `/metrics`.
    pub http_addr: SocketAddr,
    /// The HTTP API of `asset-worker serve`.
    pub api: ApiSettings,
    /// Which telemetry is exported by OTLP.
    pub telemetry: TelemetrySettings,
    /// Format of the log lines; `None`: text on a terminal, else JSON.
    pub log_format: Option<LogFormat>,
    /// Log filter directives; `None`: the default of the subcommand.
    pub log_filter: Option<String>,
    /// Every setting with its value as text; secrets are redacted.
    pub redacted_values: Vec<(&'static str, String)>,
}

/// How Stability's API is used.
#[derive(Debug, Clone)]
pub struct StabilitySettings {
    /// API key; required only to generate images.
    pub api_key: Option<SecretString>,
    /// The file that the key was read from.
    pub api_key_file: Option<SecretFile>,
    /// Base URL of the API or of the sandbox.
    pub base_url: Url,
    /// Maximum number of requests in flight in this process.
    pub max_concurrent: NonZeroUsize,
    /// Requests per minute of all workers that share the database.
    pub rate_limit: NonZeroU32,
    /// Timeout of one request.
    pub timeout: Duration,
    /// Delays before retries of a request: one retry after each delay.
    pub retry_delays: Vec<Duration>,
    /// Rate-limit pause after a 429 response without `Retry-After`; zero: no pause, the retry delays apply.
    pub lockout: Duration,
    /// Engine of jobs that name none.
    pub engine: Engine,
    /// Price of one image in US dollars, whatever the engine; `None`: the price of its engine.
    pub cost_per_image_usd: Option<f64>,
    /// Whether a job checks, before it starts, that the account's credits cover it.
    pub check_balance: bool,
}

/// How descriptions are translated into English.
#[derive(Debug, Clone)]
pub struct TranslationSettings {
    /// Fixed translations, which take precedence.
    pub phrase_book: PhraseBook,
    /// Gemini, which translates texts that the phrase book does not hold; `None` without an API key.
    pub gemini: Option<GeminiSettings>,
    /// The file that Gemini's API key was read from.
    pub gemini_key_file: Option<SecretFile>,
}

/// How jobs are run.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// Jobs that run at the same time; also the AMQP prefetch count.
    pub max_in_flight: NonZeroUsize,
    /// Maximum number of attempts at a job.
    pub max_attempts: NonZeroU32,
    /// Delays between attempts; the last one repeats.
    pub retry_delays: Vec<Duration>,
    /// Time slice: a job that has run this long is preempted and queued behind the waiting jobs.
    pub time_slice: Duration,
    /// Duration of a lease: if it is not renewed for this long, another worker may claim the job.
    pub lease: Duration,
    /// Maximum that all workers that share the database spend per day (UTC), in US dollars.
    pub daily_budget_usd: Option<f64>,
}

impl JobSettings {
    /// Delay before a job that another worker has leased is claimed again: a sixth of the lease, at least 100 ms.
    pub fn leased_delay(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.lease.as_millis() / 6).unwrap_or(2_000).max(100))
    }

    /// All delays for which a retry queue is declared.
    pub fn queue_delays(&self) -> impl Iterator<Item = Duration> {
        self.retry_delays.iter().copied().chain([self.leased_delay()])
    }

    /// The delay after attempt number `attempts` (from 1).
    pub fn job_retry_delay(&self, attempts: u32) -> Duration {
        let position = (attempts.max(1) - 1) as usize;
        self.retry_delays.get(position).or(self.retry_delays.last()).copied().unwrap_or(Duration::from_secs(30))
    }
}

impl Settings {
    /// Reads the settings from the environment.
    ///
    /// # Errors
    ///
    /// [`SettingError`] names the variable, its value (unless it may hold a secret) and the allowed values.
    #[expect(clippy::disallowed_methods, reason = "the only place that reads the environment")]
    pub fn from_env() -> Result<Self, SettingError> {
        Self::from_source(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads the settings from a function that returns the value of a variable by name.
    ///
    /// # Errors
    ///
    /// As [`Settings::from_env`].
    pub fn from_source(source: impl Fn(&str) -> Option<String>) -> Result<Self, SettingError> {
        let reader = Reader::new(&source);
        let settings = Self {
            amqp_url: reader.secret_url("AMQP_URL", &["amqp", "amqps"])?,
            database_url: reader.secret_url("DATABASE_URL", &["postgres", "postgresql", "sqlite"])?,
            database_max_connections: reader.number("DATABASE_MAX_CONNECTIONS", 1..=1_000)?,
            storage_root: reader.storage_root("ASSET_STORAGE_URL")?,
            stability: StabilitySettings {
                api_key: reader.secret("STABILITY_API_KEY")?,
                api_key_file: reader.secret_file("STABILITY_API_KEY"),
                base_url: reader.http_url("STABILITY_BASE_URL")?,
                max_concurrent: reader.number("STABILITY_MAX_CONCURRENT", 1..=64)?,
                rate_limit: reader.number("STABILITY_RATE_LIMIT", 1..=100_000)?,
                timeout: reader.duration("STABILITY_TIMEOUT", 1..=300)?,
                retry_delays: reader.durations("STABILITY_RETRY_DELAYS", 0..=10)?,
                lockout: reader.duration("STABILITY_LOCKOUT", 0..=3_600)?,
                engine: reader.engine("STABILITY_ENGINE")?,
                cost_per_image_usd: reader.optional_float("STABILITY_COST_PER_IMAGE_USD", 0.0..=100.0)?,
                check_balance: reader.boolean("STABILITY_CHECK_BALANCE")?,
            },
            image: ImageSpec {
                width: reader.number("IMAGE_WIDTH", 64..=8_192)?,
                height: reader.number("IMAGE_HEIGHT", 64..=8_192)?,
                max_bytes: reader.number("IMAGE_MAX_BYTES", 10_000..=1_073_741_824)?,
            },
            min_sharpness: reader.float("IMAGE_MIN_SHARPNESS", 0.0..=1_000_000.0)?,
            translation: TranslationSettings {
                phrase_book: reader.phrase_book("TRANSLATION_PHRASE_BOOK")?,
                gemini: read_gemini(&reader)?,
                gemini_key_file: reader.secret_file("GEMINI_API_KEY"),
            },
            cfg_scale: reader.float("IMAGE_CFG_SCALE", stability_client::CFG_SCALE)?,
            steps: reader.number("IMAGE_STEPS", 10..=50)?,
            jobs: JobSettings {
                max_in_flight: reader.number("WORKER_MAX_IN_FLIGHT_JOBS", 1..=64)?,
                max_attempts: reader.number("WORKER_JOB_MAX_ATTEMPTS", 1..=100)?,
                retry_delays: reader.durations("WORKER_JOB_RETRY_DELAYS", 1..=10)?,
                // RabbitMQ takes a delivery back after 30 minutes. A delivery is held at most for one wait for a lease,
                // one time slice, one last request, twice the longest wait for the database, one for the storage and
                // one for a broker that blocks publishing; with the upper limits of these settings the sum stays below
                // 30 minutes.
                time_slice: reader.duration("WORKER_JOB_SLICE", 1..=720)?,
                lease: reader.duration("WORKER_LEASE", 1..=120)?,
                daily_budget_usd: reader.optional_float("WORKER_DAILY_BUDGET_USD", 0.0..=1_000_000.0)?,
            },
            retention: reader.optional_duration("WORKER_RETENTION", 1..=MAX_RETENTION_SECONDS)?,
            retention_files: reader.boolean("WORKER_RETENTION_FILES")?,
            celery_tasks: reader.task_names("CELERY_TASKS")?,
            celery_events: reader.boolean("CELERY_EVENTS")?,
            shutdown_grace: reader.duration("WORKER_SHUTDOWN_GRACE", 0..=3_600)?,
            http_addr: reader.address("HTTP_ADDR")?,
            api: ApiSettings::read(&reader)?,
            telemetry: TelemetrySettings::read(&reader)?,
            log_format: reader.log_format("LOG_FORMAT")?,
            log_filter: reader.log_filter("RUST_LOG")?,
            redacted_values: reader.redacted_values()?,
        };
        settings.check_daily_budget()?;
        Ok(settings)
    }

    /// Every setting as `NAME=value`; secrets are redacted.
    pub(crate) fn redacted_text(&self) -> String {
        let settings = self.redacted_values.iter().map(|(name, value)| format!("{name}={value}"));
        settings.collect::<Vec<_>>().join(" ")
    }

    /// A budget below the price of one image would keep the account gate closed forever.
    fn check_daily_budget(&self) -> Result<(), SettingError> {
        let list_price = self.stability.engine.price().map(Credits::usd);
        let price = self.stability.cost_per_image_usd.or(list_price).unwrap_or_default();
        match self.jobs.daily_budget_usd {
            Some(limit) if limit < price => Err(SettingError::invalid(
                "WORKER_DAILY_BUDGET_USD",
                &limit.to_string(),
                format!("at least the price of one image, {price}"),
            )),
            _ => Ok(()),
        }
    }

    /// The style of jobs where neither their command nor their project sets one.
    pub(crate) fn default_style(&self) -> Style {
        Style { cfg_scale: Some(self.cfg_scale), steps: Some(self.steps), ..Style::default() }
    }

    /// Returns the API key of Stability AI.
    ///
    /// # Errors
    ///
    /// [`SettingError`] if the key is not set.
    pub fn require_api_key(&self) -> Result<&SecretString, SettingError> {
        self.stability
            .api_key
            .as_ref()
            .ok_or_else(|| SettingError::missing("STABILITY_API_KEY", "a key of the account at platform.stability.ai"))
    }
}

/// Validates all Gemini settings, also if no API key is set.
fn read_gemini(read: &Reader) -> Result<Option<GeminiSettings>, SettingError> {
    let api_key = read.secret("GEMINI_API_KEY")?;
    let base_url = read.http_url("GEMINI_BASE_URL")?;
    let model = read.model_name("GEMINI_MODEL")?;
    let timeout = read.duration("GEMINI_TIMEOUT", 1..=600)?;
    let retry_delays = read.durations("GEMINI_RETRY_DELAYS", 0..=10)?;
    Ok(api_key.map(|api_key| GeminiSettings {
        api_key,
        base_url,
        model,
        timeout,
        retry_delays,
        user_agent: USER_AGENT.to_owned(),
        is_english: |text| !needs_translation(text),
    }))
}

#[cfg(test)]
mod tests;
