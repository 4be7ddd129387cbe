//! Connecting to the database.

use std::path::Path;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnection, PgPoolOptions};
use sea_orm::sqlx::sqlite::SqliteJournalMode;
use sea_orm::sqlx::{self, Connection};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbBackend, DbErr};
use secrecy::{ExposeSecret, SecretString};

use super::{QueryExt, ServerAddress, Store, StoreError};

/// Timeout for connecting and for getting a connection from the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a command of the command line, whose user waits.
const COMMAND_ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit of the check of a connection that is returned to the pool. Without it, connections to a server that has
/// vanished would occupy the pool until TCP gives up.
const RETURN_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for this long is checked before it is used. Each check is a query.
const UNCHECKED_IDLE_TIME: Duration = Duration::from_secs(1);
/// Default size of the connection pool. A job holds no connection while it waits for anything else, so a few are
/// enough.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 8;

/// Limits that PostgreSQL applies to each connection, so that no lock outlives its client: a client that is silent in a
/// transaction is disconnected after 5 s, before others give up to wait for its locks. Source: PostgreSQL's
/// documentation, "Client Connection Defaults" and "Connections and Authentication".
const SERVER_LIMITS: [(&str, &str); 7] = [
    ("idle_in_transaction_session_timeout", "5s"),
    ("lock_timeout", "10s"),
    ("statement_timeout", "30s"),
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "30s"),
];

impl Store {
    /// Connects to `postgres://…` or `sqlite://…` with the default number of connections; creates the directory of an
    /// SQLite file.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the database cannot be reached or opened.
    pub async fn connect(url: &SecretString) -> Result<Self, StoreError> {
        Self::connect_with(url, DEFAULT_MAX_CONNECTIONS).await
    }

    /// Like [`Store::connect`], with at most `max_connections` connections.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub async fn connect_with(url: &SecretString, max_connections: u32) -> Result<Self, StoreError> {
        if let Some(folder) = sqlite_path(url.expose_secret()).and_then(Path::parent) {
            std::fs::create_dir_all(folder).map_err(|error| {
                let error = format!("cannot create the directory {}: {error}", folder.display());
                StoreError::database("open the database file", DbErr::Custom(error))
            })?;
        }
        Self::open(url, Pool { max_connections, acquire_timeout: ACQUIRE_TIMEOUT, with_limits: true }).await
    }

    async fn open(url: &SecretString, pool: Pool) -> Result<Self, StoreError> {
        let text = url.expose_secret();
        let file = sqlite_path(text);
        let db = open_pool(url, pool).await?;
        let (server, file) = (ServerAddress::from_url(text), file.map(Path::to_owned));
        Ok(Self { db, url: url.clone(), server, file })
    }

    /// Connects for one command: creates no SQLite file, and waits for the database for 3 s at most. `None` if the file
    /// does not exist.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub async fn connect_existing(url: &SecretString) -> Result<Option<Self>, StoreError> {
        match sqlite_path(url.expose_secret()) {
            Some(file) if !file.exists() => Ok(None),
            _ => {
                let (max_connections, acquire_timeout) = (DEFAULT_MAX_CONNECTIONS, COMMAND_ACQUIRE_TIMEOUT);
                Self::open(url, Pool { max_connections, acquire_timeout, with_limits: true }).await.map(Some)
            }
        }
    }

    /// Opens connections without the limits of [`SERVER_LIMITS`], for migrations, which may take long.
    pub(super) async fn open_unlimited_connections(&self) -> Result<DatabaseConnection, StoreError> {
        match self.db.get_database_backend() {
            // One holds the lock, one migrates.
            DbBackend::Postgres => {
                let pool = Pool { max_connections: 2, acquire_timeout: ACQUIRE_TIMEOUT, with_limits: false };
                open_pool(&self.url, pool).await
            }
            _ => Ok(self.db.clone()),
        }
    }
}

/// Options of a connection pool.
struct Pool {
    max_connections: u32,
    /// Timeout for connecting and for getting a connection.
    acquire_timeout: Duration,
    /// Whether the connections have [`SERVER_LIMITS`].
    with_limits: bool,
}

async fn open_pool(url: &SecretString, pool: Pool) -> Result<DatabaseConnection, StoreError> {
    let Pool { max_connections, acquire_timeout, with_limits } = pool;
    let mut options = ConnectOptions::new(url.expose_secret());
    options
        .max_connections(max_connections)
        .acquire_timeout(acquire_timeout)
        .connect_timeout(acquire_timeout)
        .test_before_acquire_if_idle_for(UNCHECKED_IDLE_TIME)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(|options| {
            // With WAL, readers do not wait for the writer; the busy timeout makes writers wait for each other.
            options.journal_mode(SqliteJournalMode::Wal).busy_timeout(ACQUIRE_TIMEOUT).foreign_keys(true)
        });
    if with_limits {
        options.map_sqlx_postgres_opts(|options| options.options(SERVER_LIMITS)).map_sqlx_postgres_pool_opts(
            |options: PgPoolOptions| options.after_release(|connection, _| Box::pin(check_returned(connection))),
        );
    }
    Database::connect(options).with_timeout("connect").await
}

/// Checks a connection that is returned to the pool; an error closes it.
async fn check_returned(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let answered = tokio::time::timeout(RETURN_TIMEOUT, connection.ping()).await;
    answered.map_err(|_| sqlx::Error::PoolTimedOut)?.map(|()| true)
}

/// The file path of an SQLite URL; `None` for an in-memory or another database.
fn sqlite_path(url: &str) -> Option<&Path> {
    let rest = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"))?;
    let path = rest.split('?').next().unwrap_or(rest);
    (!path.is_empty() && path != ":memory:").then(|| Path::new(path))
}
