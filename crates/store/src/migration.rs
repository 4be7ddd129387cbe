//! The schema, brought up to date by whoever starts first.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use migrations::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, TransactionTrait};
use tokio::task::spawn_blocking;

use super::{Doing, Store, StoreError};

/// Names the lock in PostgreSQL: the first letters of the program's name.
const LOCK_KEY: i64 = 0x6173_7365_7477_6b72;
const DOING: &str = "be migrated";

/// Held while the schema is changed.
enum Alone {
    /// A lock in the database, until the transaction ends.
    Postgres(DatabaseTransaction),
    /// A lock on a file beside the database, until it is closed.
    File { _closed_last: File },
    /// Nobody else can see a database in memory.
    Nobody,
}

impl Store {
    /// Applies the migrations that are missing, and returns how many they were. Where several processes start on the same database, one of them does
    /// it, and the others wait for it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where one fails; those before it stay applied.
    pub async fn migrate(&self) -> Result<usize, StoreError> {
        if self.pending_migrations().await? == 0 {
            return Ok(0);
        }
        let alone = self.alone().await.map_err(|error| StoreError::failed(DOING, error))?;
        let pending = self.pending_migrations().await?;
        if pending > 0 {
            // Without a bound, as it may have much to do.
            Migrator::up(&self.db, None).await.map_err(|error| StoreError::failed(DOING, error))?;
        }
        if let Alone::Postgres(transaction) = alone {
            transaction.commit().doing(DOING).await?;
        }
        Ok(pending)
    }

    /// How many migrations have not been applied.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the database does not answer.
    pub async fn pending_migrations(&self) -> Result<usize, StoreError> {
        Ok(Migrator::get_pending_migrations_read_only(&self.db).doing("list its migrations").await?.len())
    }

    /// Waits until no other process migrates this database, however long that takes.
    async fn alone(&self) -> Result<Alone, DbErr> {
        match &self.file {
            Some(file) => {
                let file = file.clone();
                let locked = spawn_blocking(|| locked(file)).await.map_err(|error| DbErr::Custom(error.to_string()))?;
                locked
                    .map(|file| Alone::File { _closed_last: file })
                    .map_err(|error| DbErr::Custom(format!("cannot lock its file: {error}")))
            }
            None if self.db.get_database_backend() == sea_orm::DbBackend::Postgres => {
                let transaction = self.db.begin().await?;
                transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({LOCK_KEY})")).await?;
                Ok(Alone::Postgres(transaction))
            }
            None => Ok(Alone::Nobody),
        }
    }
}

fn locked(database: PathBuf) -> io::Result<File> {
    let mut name = database.into_os_string();
    name.push("-migration");
    let file = File::create(name)?;
    file.lock()?;
    Ok(file)
}
