//! The lease of a job: its fencing token, its expiry, and how often it was lost.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, integer};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// The fencing token: grows with each claim; a write with an older token has no effect.
    LeaseToken,
    /// When the lease expires, in milliseconds since 1970 by the database's clock; 0 if the job is not leased.
    LeaseUntilMs,
    /// How many times in a row the lease expired without an image having been completed.
    LeaseLosses,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for mut column in [big_integer(Jobs::LeaseToken), big_integer(Jobs::LeaseUntilMs), integer(Jobs::LeaseLosses)] {
            let column = column.default(0).to_owned();
            manager.alter_table(Table::alter().table(Jobs::Table).add_column(column).to_owned()).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [Jobs::LeaseLosses, Jobs::LeaseUntilMs, Jobs::LeaseToken] {
            manager.alter_table(Table::alter().table(Jobs::Table).drop_column(column).to_owned()).await?;
        }
        Ok(())
    }
}
