//! Who works on a job: the lease, its fencing token, and how often it was lost.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, integer};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// Grows with each claim; what names an older one has no effect.
    LeaseToken,
    /// Until when the lease holds: milliseconds since 1970 by the database's clock; 0 where nobody holds it.
    LeaseUntilMs,
    /// How often in a row the lease ran out without an image being finished.
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
