//! The database: jobs, assets, translations, styles, money, and what may become of them. The only crate that names `sea-orm`; no type of it leaves.
//!
//! Every method is one short transaction or statement; none waits for anything but the database.

mod asset;
mod cached;
mod claim;
mod dialect;
mod finish;
mod image;
mod job;
mod lease;
mod migration;
mod quota;
mod report;
mod spending;
mod style;
mod translation;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::sqlx::sqlite::SqliteJournalMode;
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbBackend, DbErr};
use secrecy::{ExposeSecret, SecretString};
use tracing::field::Empty;
use tracing::{Span, info_span};
use url::Url;

pub use cached::CachedImage;
pub use claim::{Claim, ClaimTerms, Claimed, ClaimedImage, TerminalEvent};
pub use finish::{Ending, KnownJob};
pub use lease::Lease;
pub use quota::Pace;
pub use report::{AssetReport, JobReport};
pub use spending::{PaidImage, Payment};
pub use translation::Translation;

/// How long a connection is waited for.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// The bound on any single answer: statements take milliseconds, or the database is in trouble.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest description of a failure in a span.
const MAX_DESCRIPTION_CHARS: usize = 300;
/// A job holds no connection while it waits for anything else, so that few are enough.
const MAX_CONNECTIONS: u32 = 8;

/// Why something was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed, while doing what.
    #[error("the database cannot {doing}")]
    Failed {
        /// What it was asked to do.
        doing: &'static str,
        /// Why it did not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody else has claimed the job, or ended it.
    #[error("the job's lease was lost")]
    LeaseLost,
}

/// Bounds a wait for the database, and names what was waited for.
trait Doing<'a, T> {
    fn doing(self, doing: &'static str) -> impl Future<Output = Result<T, StoreError>> + Send + 'a;
}

impl<'a, T: 'a, F: Future<Output = Result<T, DbErr>> + Send + 'a> Doing<'a, T> for F {
    fn doing(self, doing: &'static str) -> impl Future<Output = Result<T, StoreError>> + Send + 'a {
        // Boxed, since these futures hold kilobytes and go into all that waits for them.
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, Box::pin(self));
        async move {
            let late = |_| Err(DbErr::Custom(format!("no answer within {ANSWER_TIMEOUT:?}")));
            answer.await.unwrap_or_else(late).map_err(|error| {
                note_failure(&error);
                StoreError::failed(doing, error)
            })
        }
    }
}

/// Notes a failure on the span of the statement.
fn note_failure(error: &DbErr) {
    let span = Span::current();
    span.record("error.type", "database");
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", error.to_string().chars().take(MAX_DESCRIPTION_CHARS).collect::<String>());
}

impl StoreError {
    fn failed(doing: &'static str, error: DbErr) -> Self {
        Self::Failed { doing, source: Box::new(error) }
    }
}

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub struct Store {
    db: DatabaseConnection,
    /// Where the database is a server.
    server: Option<Server>,
    /// Where the database is a file.
    file: Option<PathBuf>,
}

impl Store {
    /// Connects to `postgres://…` or `sqlite://…`; the folder of an SQLite file is made.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the database cannot be reached or opened.
    pub async fn connect(url: &SecretString) -> Result<Self, StoreError> {
        let url = url.expose_secret();
        let file = sqlite_file(url);
        if let Some(folder) = file.and_then(Path::parent) {
            std::fs::create_dir_all(folder).map_err(|error| {
                let error = format!("cannot make the folder {}: {error}", folder.display());
                StoreError::failed("be opened", DbErr::Custom(error))
            })?;
        }
        let mut options = ConnectOptions::new(url);
        options
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_timeout(ACQUIRE_TIMEOUT)
            .sqlx_logging(false)
            .map_sqlx_sqlite_opts(|options| {
                // Readers do not wait for the one writer, and writers wait for each other.
                options.journal_mode(SqliteJournalMode::Wal).busy_timeout(ACQUIRE_TIMEOUT).foreign_keys(true)
            });
        let db = Database::connect(options).doing("be reached").await?;
        Ok(Self { db, server: Server::of(url), file: file.map(Path::to_owned) })
    }

    /// The span of one short piece of work, by OpenTelemetry's conventions for databases.
    fn asked(&self, operation: &'static str, table: &'static str) -> Span {
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

    /// Asks the database for an answer.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where it gives none.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.db.ping().doing("be reached").await
    }
}

/// Where a database is, for spans.
#[derive(Debug, Clone)]
struct Server {
    host: String,
    port: u16,
    database: String,
}

impl Server {
    fn of(url: &str) -> Option<Self> {
        let url = Url::parse(url).ok().filter(|url| url.scheme().starts_with("postgres"))?;
        let database = url.path().trim_start_matches('/').to_owned();
        Some(Self { host: url.host_str()?.to_owned(), port: url.port().unwrap_or(5432), database })
    }
}

/// The file of an SQLite URL; none for a database in memory or another kind.
fn sqlite_file(url: &str) -> Option<&Path> {
    let rest = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"))?;
    let path = rest.split('?').next().unwrap_or(rest);
    (!path.is_empty() && path != ":memory:").then(|| Path::new(path))
}

#[cfg(test)]
mod tests;
