//! Every setting, read once at the start.
//!
//! Settings are a pure function of their source, so that tests pass a map. Only [`Settings::from_env`] reads the environment. An
//! empty value counts as unset. Whatever may hold a secret can also come from a file: `NAME_FILE`.

mod read;
mod telemetry;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use domain::image_spec::ImageSpec;
use domain::prompt::needs_translation;
use gemini_client::GeminiSettings;
use secrecy::SecretString;
use url::Url;

use crate::phrase_book::PhraseBook;
use read::Reader;
pub use read::SettingError;
pub use telemetry::{Otlp, TelemetrySettings};

/// What the program calls itself in requests to other services.
const USER_AGENT: &str = concat!("asset-worker/", env!("CARGO_PKG_VERSION"));

/// One row of the settings table.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable.
    pub name: &'static str,
    /// The value where it is not set, as the documentation shows it.
    pub default: &'static str,
    /// Whether its value may hold a secret; then `NAME_FILE` works too.
    pub secret: bool,
}

const fn setting(name: &'static str, default: &'static str) -> Setting {
    Setting { name, default, secret: false }
}

const fn secret(name: &'static str, default: &'static str) -> Setting {
    Setting { name, default, secret: true }
}

/// Every setting there is. The README's table is tested against it.
pub const ALL: &[Setting] = &[
    secret("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"),
    secret("DATABASE_URL", "sqlite://data/asset-worker.db?mode=rwc"),
    setting("ASSET_STORAGE_URL", ""),
    secret("STABILITY_API_KEY", ""),
    setting("STABILITY_BASE_URL", "https://api.stability.ai/"),
    setting("STABILITY_MAX_CONCURRENT", "4"),
    setting("STABILITY_RATE_LIMIT", "150"),
    setting("STABILITY_TIMEOUT", "60s"),
    setting("STABILITY_RETRY_DELAYS", "2s,5s,10s"),
    setting("STABILITY_LOCKOUT", "60s"),
    setting("STABILITY_COST_PER_IMAGE_USD", "0.02"),
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
    setting("HTTP_ADDR", "0.0.0.0:8080"),
    setting("LOG_FORMAT", ""),
    setting("RUST_LOG", "info"),
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Where files go.
#[derive(Debug, Clone)]
pub enum StorageRoot {
    /// A folder, absolute.
    Folder(PathBuf),
    /// A bucket of S3, or of something that speaks its language.
    Bucket {
        /// Its name.
        bucket: String,
        /// What all paths begin with; may be empty.
        prefix: String,
        /// The usual variables of AWS that are set, by name.
        aws: Vec<(&'static str, SecretString)>,
    },
}

/// The variables of AWS that are heeded where files go to a bucket. Their meaning is AWS's own.
pub const AWS: &[&str] = &[
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

/// The settings in force.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The broker.
    pub amqp_url: SecretString,
    /// The database.
    pub database_url: SecretString,
    /// Where files go.
    pub storage_root: StorageRoot,
    /// Stability's API.
    pub stability: StabilitySettings,
    /// What every stored image measures.
    pub image: ImageSpec,
    /// Below this a picture counts as blurred away; 0 lets every picture pass.
    pub min_sharpness: f64,
    /// How texts become English.
    pub translation: TranslationSettings,
    /// Default of a job.
    pub cfg_scale: f64,
    /// Default of a job.
    pub steps: u8,
    /// Jobs at once.
    pub jobs: JobSettings,
    /// From SIGTERM to the end.
    pub shutdown_grace: Duration,
    /// Health endpoints.
    pub http_addr: SocketAddr,
    /// What is exported.
    pub telemetry: TelemetrySettings,
    /// `None`: text on a terminal, else JSON.
    pub log_format: Option<LogFormat>,
    /// Filter directives; `None` leaves it to the command.
    pub log_filter: Option<String>,
    /// Every setting with its value as text, for people: secrets are redacted.
    pub in_force: Vec<(&'static str, String)>,
}

/// How the API is used.
#[derive(Debug, Clone)]
pub struct StabilitySettings {
    /// Needed for generation only.
    pub api_key: Option<SecretString>,
    /// Where the API is.
    pub base_url: Url,
    /// Requests in flight in this process.
    pub max_concurrent: NonZeroUsize,
    /// Requests a minute.
    pub rate_limit: NonZeroU32,
    /// One request.
    pub timeout: Duration,
    /// A retry after each.
    pub retry_delays: Vec<Duration>,
    /// The pause after a 429 that names none.
    pub lockout: Duration,
    /// For estimates and budgets.
    pub cost_per_image_usd: f64,
    /// Whether the account's credits are looked at before a job spends any.
    pub check_balance: bool,
}

/// How texts become English.
#[derive(Debug, Clone)]
pub struct TranslationSettings {
    /// Texts whose English is fixed.
    pub phrase_book: PhraseBook,
    /// For what the phrase book does not hold; needs a key.
    pub gemini: Option<GeminiSettings>,
}

/// How jobs are run.
#[derive(Debug, Clone)]
pub struct JobSettings {
    /// At once; also the prefetch.
    pub max_in_flight: NonZeroUsize,
    /// Tries in all.
    pub max_attempts: NonZeroU32,
    /// Between tries; the last one repeats.
    pub retry_delays: Vec<Duration>,
    /// How long a job runs before it lets those that wait go first.
    pub slice: Duration,
    /// How long a job stays with a worker that is not heard of.
    pub lease: Duration,
    /// What all workers that share the database may spend in a day, in US dollars.
    pub daily_budget_usd: Option<f64>,
}

impl JobSettings {
    /// After how long it is looked again whether somebody else works on a job.
    pub fn held_delay(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.lease.as_millis() / 6).unwrap_or(2_000).max(100))
    }

    /// The delays that have a queue of their own.
    pub fn queue_delays(&self) -> impl Iterator<Item = Duration> {
        self.retry_delays.iter().copied().chain([self.held_delay()])
    }

    /// The wait after the try that ended as number `attempts` (from 1).
    pub fn delay_after(&self, attempts: u32) -> Duration {
        let position = (attempts.max(1) - 1) as usize;
        self.retry_delays.get(position).or(self.retry_delays.last()).copied().unwrap_or(Duration::from_secs(30))
    }
}

impl Settings {
    /// Reads the settings of this process.
    ///
    /// # Errors
    ///
    /// [`SettingError`] names the variable, its value (never a secret's) and what is allowed.
    #[expect(clippy::disallowed_methods, reason = "this is the one door to the environment")]
    pub fn from_env() -> Result<Self, SettingError> {
        Self::from_source(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads the settings from any source.
    ///
    /// # Errors
    ///
    /// As [`Settings::from_env`].
    pub fn from_source(source: impl Fn(&str) -> Option<String>) -> Result<Self, SettingError> {
        let read = Reader::new(&source);
        let settings = Self {
            amqp_url: read.url_secret("AMQP_URL", &["amqp", "amqps"])?,
            database_url: read.url_secret("DATABASE_URL", &["postgres", "postgresql", "sqlite"])?,
            storage_root: read.storage_root("ASSET_STORAGE_URL")?,
            stability: StabilitySettings {
                api_key: read.secret("STABILITY_API_KEY")?,
                base_url: read.http_url("STABILITY_BASE_URL")?,
                max_concurrent: read.number("STABILITY_MAX_CONCURRENT", 1..=64)?,
                rate_limit: read.number("STABILITY_RATE_LIMIT", 1..=100_000)?,
                timeout: read.duration("STABILITY_TIMEOUT", 1..=300)?,
                retry_delays: read.durations("STABILITY_RETRY_DELAYS", 0..=10)?,
                lockout: read.duration("STABILITY_LOCKOUT", 0..=3_600)?,
                cost_per_image_usd: read.real("STABILITY_COST_PER_IMAGE_USD", 0.0..=100.0)?,
                check_balance: read.boolean("STABILITY_CHECK_BALANCE")?,
            },
            image: ImageSpec {
                width: read.number("IMAGE_WIDTH", 64..=8_192)?,
                height: read.number("IMAGE_HEIGHT", 64..=8_192)?,
                max_bytes: read.number("IMAGE_MAX_BYTES", 10_000..=1_073_741_824)?,
            },
            min_sharpness: read.real("IMAGE_MIN_SHARPNESS", 0.0..=1_000_000.0)?,
            translation: TranslationSettings {
                phrase_book: read.phrase_book("TRANSLATION_PHRASE_BOOK")?,
                gemini: gemini(&read)?,
            },
            cfg_scale: read.real("IMAGE_CFG_SCALE", stability_client::CFG_SCALE)?,
            steps: read.number("IMAGE_STEPS", 10..=50)?,
            jobs: JobSettings {
                max_in_flight: read.number("WORKER_MAX_IN_FLIGHT_JOBS", 1..=64)?,
                max_attempts: read.number("WORKER_JOB_MAX_ATTEMPTS", 1..=100)?,
                retry_delays: read.durations("WORKER_JOB_RETRY_DELAYS", 1..=10)?,
                // A delivery is held for a slice, a last request, and twice the longest wait for the database at most, after a wait for a lease: with the
                // longest of each that is below the 30 minutes after which RabbitMQ takes it away.
                slice: read.duration("WORKER_JOB_SLICE", 1..=720)?,
                lease: read.duration("WORKER_LEASE", 1..=120)?,
                daily_budget_usd: read.optional_real("WORKER_DAILY_BUDGET_USD", 0.0..=1_000_000.0)?,
            },
            shutdown_grace: read.duration("WORKER_SHUTDOWN_GRACE", 0..=3_600)?,
            http_addr: read.address("HTTP_ADDR")?,
            telemetry: TelemetrySettings::read(&read)?,
            log_format: read.log_format("LOG_FORMAT")?,
            log_filter: read.log_filter("RUST_LOG")?,
            in_force: read.in_force()?,
        };
        Ok(settings)
    }

    /// The key, for what cannot be done without it.
    ///
    /// # Errors
    ///
    /// [`SettingError`] where it is not set.
    pub fn require_api_key(&self) -> Result<&SecretString, SettingError> {
        self.stability
            .api_key
            .as_ref()
            .ok_or_else(|| SettingError::missing("STABILITY_API_KEY", "a key of the account at platform.stability.ai"))
    }
}

/// Everything about Gemini is checked, whether there is a key or not.
fn gemini(read: &Reader) -> Result<Option<GeminiSettings>, SettingError> {
    let api_key = read.secret("GEMINI_API_KEY")?;
    let base_url = read.http_url("GEMINI_BASE_URL")?;
    let model = read.model("GEMINI_MODEL")?;
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
