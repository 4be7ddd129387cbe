//! Database access: jobs, leases, attempts, assets, cached images, translations, project styles, spending, quota,
//! pauses, API keys, running workers and the audit.
//!
//! The only crate that uses `sea-orm`; its public API contains no type of it. Each method runs one short transaction or
//! statement, and none waits for anything but the database.

mod account_key;
mod activity;
mod asset;
mod attempt;
mod audit;
mod cache;
mod cancel;
mod claim;
mod claimed_image;
mod connect;
mod costs;
mod dialect;
mod files;
mod finish;
mod image;
mod job;
mod job_details;
mod job_events;
mod lease;
mod migration;
mod outbox;
mod pause;
mod preview;
mod purge;
mod quota;
mod report;
mod retry;
mod spending;
mod style;
mod submit;
mod sweep;
mod translation;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use sea_orm::{DatabaseConnection, DbBackend, DbErr};
use secrecy::SecretString;
use tracing::field::Empty;
use tracing::{Span, info_span};
use url::Url;

pub use account_key::{KeyHash, KeyStatus, Payer, Probe, Refusal};
pub use activity::{Activity, DaySpending, EndedCount};
pub use attempt::Attempt;
pub use audit::AuditEntry;
pub use cache::CachedImage;
pub use cancel::Cancellation;
pub use claim::{Claim, ClaimOptions, ClaimedJob, TerminalEvent, UnclaimedJob};
pub use claimed_image::ClaimedImage;
pub use connect::DEFAULT_MAX_CONNECTIONS;
pub use costs::{CostKey, CostSum};
pub use files::FileRow;
pub use finish::{Finish, JobEnd, KnownJob, UnpublishedEvent};
pub use job_details::{ImageCopy, ImageDetails, JobDetails, RelatedJob};
pub use job_events::JobHistory;
pub use lease::Lease;
pub use migration::SchemaState;
pub use outbox::StoredMessage;
pub use pause::Pause;
pub use preview::{ClaimPreview, JobDuration, KnownState};
pub use purge::{PurgeCount, PurgeFilter, PurgeableJob};
pub use quota::Pace;
pub use report::{AssetReport, FailureCode, JobCursor, JobFilter, JobReport};
pub use spending::{CostReservation, LeasedImage};
pub use submit::{DueCommand, Submission};
pub use sweep::{DueJob, EndedJob};
pub use translation::{Lookup, Translation};
pub use worker::{Heartbeat, WORKER_HEARTBEAT_INTERVAL, WorkerReport};

/// Timeout for each statement, which normally takes milliseconds.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of `otel.status_description`.
const MAX_STATUS_CHARS: usize = 300;

/// Why a database operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database returned an error, or did not respond in time.
    #[error("database: cannot {operation}")]
    Database {
        /// The operation, as a verb phrase.
        operation: &'static str,
        /// The error of the database or its driver.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another worker has claimed the job, or the job has ended.
    #[error("job lease lost")]
    LeaseLost,
}

/// Awaits a database operation for at most [`QUERY_TIMEOUT`] and names it in the error.
trait QueryExt<'a, T> {
    fn with_timeout(self, doing: &'static str) -> impl Future<Output = Result<T, StoreError>> + Send + 'a;
}

impl<'a, T: 'a, F: Future<Output = Result<T, DbErr>> + Send + 'a> QueryExt<'a, T> for F {
    fn with_timeout(self, doing: &'static str) -> impl Future<Output = Result<T, StoreError>> + Send + 'a {
        // Boxed because these futures take kilobytes and would be embedded in every future that awaits them.
        let answer = tokio::time::timeout(QUERY_TIMEOUT, Box::pin(self));
        async move {
            let timed_out = |_| Err(DbErr::Custom(format!("no response within {QUERY_TIMEOUT:?}")));
            answer.await.unwrap_or_else(timed_out).map_err(|error| {
                record_error_on_span(&error);
                StoreError::database(doing, error)
            })
        }
    }
}

/// Records an error on the span of the current operation.
fn record_error_on_span(error: &DbErr) {
    let span = Span::current();
    span.record("error.type", "database");
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", error.to_string().chars().take(MAX_STATUS_CHARS).collect::<String>());
}

impl StoreError {
    fn database(operation: &'static str, error: DbErr) -> Self {
        Self::Database { operation, source: Box::new(error) }
    }
}

/// A pool of database connections. Clones share the pool.
#[derive(Clone)]
pub struct Store {
    db: DatabaseConnection,
    url: SecretString,
    /// For PostgreSQL: its address.
    server: Option<ServerAddress>,
    /// For SQLite: the path of its file.
    file: Option<PathBuf>,
}

impl Store {
    /// The span of one operation, by OpenTelemetry's semantic conventions for databases.
    fn operation_span(&self, operation: &'static str, table: &'static str) -> Span {
        let system = match self.db.get_database_backend() {
            DbBackend::Postgres => "postgresql",
            DbBackend::MySql => "mysql",
            _ => "sqlite",
        };
        let server = self.server.as_ref();
        info_span!(
            "database",
            otel.name = format!("{operation} {table}"),
            otel.kind = "client",
            db.system.name = system,
            db.operation.name = operation,
            db.collection.name = table,
            db.namespace = server.map(|server| &server.database),
            server.address = server.map(|server| &server.host),
            server.port = server.map(|server| server.port),
            "error.type" = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        )
    }

    /// Checks that the database responds.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.db.ping().with_timeout("check the connection").await
    }
}

/// Address and name of a PostgreSQL database, for span attributes.
#[derive(Debug, Clone)]
struct ServerAddress {
    host: String,
    port: u16,
    database: String,
}

impl ServerAddress {
    fn from_url(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok().filter(|url| url.scheme().starts_with("postgres"))?;
        let database = url.path().trim_start_matches('/').to_owned();
        Some(Self { host: url.host_str()?.to_owned(), port: url.port().unwrap_or(5432), database })
    }
}

#[cfg(test)]
mod tests;
