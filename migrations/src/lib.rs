//! The worker's database schema: one set of migrations for PostgreSQL and SQLite.
//!
//! Ids are native UUIDs (blobs of 16 bytes on SQLite), times are UTC. A released migration is never edited.

mod m20261124_000001_jobs_and_assets;
mod m20261124_000002_language_style_cache_money;
mod m20261124_000003_leases;
mod m20261124_000004_quota;
mod m20261125_000005_account_gate;
mod m20261126_000006_account_keys;

use sea_orm_migration::prelude::*;

pub use sea_orm_migration::MigratorTrait;

/// Lists the migrations in the order in which they are applied.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261124_000001_jobs_and_assets::Migration),
            Box::new(m20261124_000002_language_style_cache_money::Migration),
            Box::new(m20261124_000003_leases::Migration),
            Box::new(m20261124_000004_quota::Migration),
            Box::new(m20261125_000005_account_gate::Migration),
            Box::new(m20261126_000006_account_keys::Migration),
        ]
    }
}
