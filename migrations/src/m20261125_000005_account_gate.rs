//! The account gate: why no worker may pay for requests.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer_null, string, text_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// One row per account; currently there is one.
#[derive(DeriveIden)]
enum AccountGate {
    Table,
    Name,
    /// Since when an operator has paused the workers, in milliseconds since 1970 by the database's clock.
    PausedSinceMs,
    /// The operator's reason for the pause.
    PausedReason,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table(AccountGate::Table)
            .col(string(AccountGate::Name).primary_key())
            .col(big_integer_null(AccountGate::PausedSinceMs))
            .col(text_null(AccountGate::PausedReason))
            .to_owned();
        manager.create_table(table).await?;
        let row = Query::insert()
            .into_table(AccountGate::Table)
            .columns([AccountGate::Name])
            .values_panic(["stability".into()])
            .to_owned();
        manager.execute(row).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(AccountGate::Table).to_owned()).await
    }
}
