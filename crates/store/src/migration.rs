//! Migration of the schema, by one process at a time.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use migrations::{Migrator, MigratorTraitSelf};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, TransactionTrait};
use tokio::task::spawn_blocking;

use super::{QueryExt, Store, StoreError};

/// Key of the advisory lock in PostgreSQL: the ASCII codes of `assetwkr`.
const LOCK_KEY: i64 = 0x6173_7365_7477_6b72;
const OPERATION: &str = "apply migrations";

/// The state of a database's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaState {
    /// The number of migrations of this program that are not applied yet.
    pub pending: usize,
    /// The names of applied migrations that this program does not know: a newer version has applied them.
    pub newer: Vec<String>,
}

/// Prevents other processes from migrating the same database.
enum MigrationLock {
    /// An advisory lock, held until the transaction ends.
    Postgres(DatabaseTransaction),
    /// A lock on a file beside the database, held until that file is closed.
    File { _closed_last: File },
    /// An in-memory database is not shared with other processes.
    NotNeeded,
}

impl Store {
    /// Applies the pending migrations of this program and returns their number. Those of a newer version are ignored.
    ///
    /// If several processes start on the same database, one of them migrates and the others wait for it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if a migration fails; those before it stay applied.
    pub async fn migrate(&self) -> Result<usize, StoreError> {
        if self.read_schema_state().await?.pending == 0 {
            return Ok(0);
        }
        let db = self.open_unlimited_connections().await?;
        let alone = self.lock_migrations(&db).await.map_err(|error| StoreError::database(OPERATION, error))?;
        let pending = self.read_schema_state().await?.pending;
        if pending > 0 {
            let migrator = Migrator::for_database(&db).with_timeout(OPERATION).await?;
            // No timeout: a migration of large tables may take long.
            migrator.up(&db, None).await.map_err(|error| StoreError::database(OPERATION, error))?;
        }
        if let MigrationLock::Postgres(transaction) = alone {
            transaction.commit().with_timeout(OPERATION).await?;
        }
        if db.get_database_backend() == DbBackend::Postgres {
            // An error changes nothing any more.
            let _ = db.close().await;
        }
        Ok(pending)
    }

    /// Reads which migrations are applied. Writes nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the database cannot be read.
    pub async fn read_schema_state(&self) -> Result<SchemaState, StoreError> {
        let migrator = Migrator::for_database(&self.db).with_timeout("list migrations").await?;
        let pending = migrator.get_pending_migrations_read_only(&self.db).with_timeout("list migrations").await?.len();
        Ok(SchemaState { pending, newer: migrator.newer().to_vec() })
    }

    /// Waits, without a timeout, until no other process migrates this database.
    async fn lock_migrations(&self, db: &DatabaseConnection) -> Result<MigrationLock, DbErr> {
        match &self.file {
            Some(file) => {
                let file = file.clone();
                let locked =
                    spawn_blocking(|| lock_file(file)).await.map_err(|error| DbErr::Custom(error.to_string()))?;
                locked
                    .map(|file| MigrationLock::File { _closed_last: file })
                    .map_err(|error| DbErr::Custom(format!("cannot lock the migration lock file: {error}")))
            }
            None if self.db.get_database_backend() == DbBackend::Postgres => {
                let transaction = db.begin().await?;
                transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({LOCK_KEY})")).await?;
                Ok(MigrationLock::Postgres(transaction))
            }
            None => Ok(MigrationLock::NotNeeded),
        }
    }
}

fn lock_file(database: PathBuf) -> io::Result<File> {
    let mut name = database.into_os_string();
    name.push("-migration");
    let file = File::create(name)?;
    file.lock()?;
    Ok(file)
}
