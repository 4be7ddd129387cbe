//! The quota of the Stability account, shared by all workers.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, string};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// One row per rate-limited account; currently there is one.
#[derive(DeriveIden)]
enum Quotas {
    Table,
    Name,
    /// When the next request is due (GCRA's theoretical arrival time), in microseconds since 1970 by the database's
    /// clock.
    DueUs,
    /// When the most recently permitted request may be sent.
    SlotUs,
    /// End of the rate-limit pause; no request may be sent earlier.
    PausedUntilUs,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table(Quotas::Table)
            .col(string(Quotas::Name).primary_key())
            .col(big_integer(Quotas::DueUs).default(0))
            .col(big_integer(Quotas::SlotUs).default(0))
            .col(big_integer(Quotas::PausedUntilUs).default(0))
            .to_owned();
        manager.create_table(table).await?;
        let row = Query::insert()
            .into_table(Quotas::Table)
            .columns([Quotas::Name])
            .values_panic(["stability".into()])
            .to_owned();
        manager.execute(row).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Quotas::Table).to_owned()).await
    }
}
