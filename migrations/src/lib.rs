//! The worker's database schema: one set of migrations for PostgreSQL and SQLite.
//!
//! Ids are native UUIDs (blobs of 16 bytes on SQLite), times are UTC. A released migration is never edited, and within a
//! major version migrations only add: a program runs on a database that a newer version has migrated.

mod m20261124_000001_jobs_and_assets;
mod m20261124_000002_language_style_cache_money;
mod m20261124_000003_leases;
mod m20261124_000004_quota;
mod m20261125_000005_account_gate;
mod m20261126_000006_account_keys;
mod m20261126_000007_indexes;
mod m20261126_000008_job_engine;
mod m20261126_000009_stop_jobs;
mod m20261126_000010_retries;
mod m20261126_000011_replies;
mod m20261126_000012_retention;
mod m20261127_000013_api;
mod m20261127_000014_page;

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DatabaseConnection, Statement};

pub use sea_orm_migration::MigratorTraitSelf;

/// The migrations of one database: those of this program, and those that a newer version has applied.
#[derive(Default)]
pub struct Migrator {
    newer: Vec<String>,
}

impl Migrator {
    /// Reads which unknown migrations are applied to a database. Writes nothing.
    ///
    /// # Errors
    ///
    /// [`DbErr`] if the database cannot be read.
    pub async fn for_database(db: &DatabaseConnection) -> Result<Self, DbErr> {
        let table = "seaql_migrations";
        if !SchemaManager::new(db).has_table(table).await? {
            return Ok(Self::default());
        }
        let sql = format!("SELECT version FROM {table} ORDER BY version");
        let rows = db.query_all_raw(Statement::from_string(db.get_database_backend(), sql)).await?;
        let applied = rows.iter().map(|row| row.try_get("", "version")).collect::<Result<Vec<String>, _>>()?;
        let own: Vec<String> = own_migrations().iter().map(|migration| migration.name().to_owned()).collect();
        Ok(Self { newer: applied.into_iter().filter(|version| !own.contains(version)).collect() })
    }

    /// The applied migrations that this program does not know: a newer version has applied them.
    pub fn newer(&self) -> &[String] {
        &self.newer
    }
}

/// A migration that a newer version has applied.
struct NewerMigration(String);

impl MigrationName for NewerMigration {
    fn name(&self) -> &str {
        &self.0
    }
}

#[async_trait::async_trait]
impl MigrationTrait for NewerMigration {
    async fn up(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Custom(format!("migration {} belongs to a newer version", self.0)))
    }
}

#[async_trait::async_trait]
impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        let newer =
            self.newer.iter().map(|version| Box::new(NewerMigration(version.clone())) as Box<dyn MigrationTrait>);
        own_migrations().into_iter().chain(newer).collect()
    }
}

/// The migrations of this program, in the order in which they are applied.
fn own_migrations() -> Vec<Box<dyn MigrationTrait>> {
    vec![
        Box::new(m20261124_000001_jobs_and_assets::Migration),
        Box::new(m20261124_000002_language_style_cache_money::Migration),
        Box::new(m20261124_000003_leases::Migration),
        Box::new(m20261124_000004_quota::Migration),
        Box::new(m20261125_000005_account_gate::Migration),
        Box::new(m20261126_000006_account_keys::Migration),
        Box::new(m20261126_000007_indexes::Migration),
        Box::new(m20261126_000008_job_engine::Migration),
        Box::new(m20261126_000009_stop_jobs::Migration),
        Box::new(m20261126_000010_retries::Migration),
        Box::new(m20261126_000011_replies::Migration),
        Box::new(m20261126_000012_retention::Migration),
        Box::new(m20261127_000013_api::Migration),
        Box::new(m20261127_000014_page::Migration),
    ]
}
