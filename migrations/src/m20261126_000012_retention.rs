//! Purged jobs, their costs, and the last use of translations.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, string, timestamp_with_time_zone_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// When the job was purged. Its id, digest and end are kept for a while.
    PurgedAt,
}

#[derive(DeriveIden)]
enum Translations {
    Table,
    /// When a job last used it, to the hour; null if none has used it since it was created.
    UsedAt,
}

/// Sums over purged jobs, by the UTC day on which they were first claimed, project and engine.
#[derive(DeriveIden)]
enum PurgedCosts {
    Table,
    Day,
    ProjectId,
    /// Empty for jobs that no worker has claimed.
    Engine,
    Jobs,
    Requests,
    /// Completed images.
    Images,
    /// Those of them that were copied from the cache.
    Cached,
    /// Requests beyond those that an image needs.
    Retries,
    MicroUsd,
}

/// Each index with its table and columns. The conditions are those of the queries.
const INDEXES: [(&str, &str); 2] = [
    ("jobs_published", "jobs (finished_at, id) WHERE terminal_event IS NOT NULL AND published_at IS NOT NULL"),
    ("jobs_purged", "jobs (purged_at) WHERE purged_at IS NOT NULL"),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let column = timestamp_with_time_zone_null(Jobs::PurgedAt);
        manager.alter_table(Table::alter().table(Jobs::Table).add_column(column).to_owned()).await?;
        let column = timestamp_with_time_zone_null(Translations::UsedAt);
        manager.alter_table(Table::alter().table(Translations::Table).add_column(column).to_owned()).await?;
        let costs = Table::create()
            .table(PurgedCosts::Table)
            .col(string(PurgedCosts::Day))
            .col(big_integer(PurgedCosts::ProjectId))
            .col(string(PurgedCosts::Engine))
            .col(big_integer(PurgedCosts::Jobs))
            .col(big_integer(PurgedCosts::Requests))
            .col(big_integer(PurgedCosts::Images))
            .col(big_integer(PurgedCosts::Cached))
            .col(big_integer(PurgedCosts::Retries))
            .col(big_integer(PurgedCosts::MicroUsd))
            .primary_key(Index::create().col(PurgedCosts::Day).col(PurgedCosts::ProjectId).col(PurgedCosts::Engine))
            .to_owned();
        manager.create_table(costs).await?;
        for (name, columns) in INDEXES {
            manager.get_connection().execute_unprepared(&format!("CREATE INDEX {name} ON {columns}")).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, _) in INDEXES {
            manager.get_connection().execute_unprepared(&format!("DROP INDEX {name}")).await?;
        }
        manager.drop_table(Table::drop().table(PurgedCosts::Table).to_owned()).await?;
        let column = Translations::UsedAt;
        manager.alter_table(Table::alter().table(Translations::Table).drop_column(column).to_owned()).await?;
        manager.alter_table(Table::alter().table(Jobs::Table).drop_column(Jobs::PurgedAt).to_owned()).await
    }
}
