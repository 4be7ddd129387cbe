//! What the pages of `serve` show: workers, attempts, costs of images, and indexes to search jobs by failure and description.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, boolean_null, integer, string, timestamp_with_time_zone, timestamp_with_time_zone_null, uuid,
};
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// A row for each running worker.
#[derive(DeriveIden)]
enum Workers {
    Table,
    /// One for each process.
    Id,
    Host,
    Version,
    StartedAt,
    /// The last heartbeat: milliseconds since 1970 by the database's clock.
    SeenAtMs,
    /// Jobs in flight.
    Jobs,
}

/// A row for each claim of a job.
#[derive(DeriveIden)]
enum Attempts {
    Table,
    JobId,
    /// The fencing token: the number of the claim.
    Token,
    /// Host name of the worker.
    Worker,
    StartedAt,
    /// When the job was released. Null if the job ended, or the lease expired.
    ReleasedAt,
    /// Whether the released attempt counts as a failed one.
    Counted,
}

#[derive(DeriveIden)]
enum Assets {
    Table,
    /// What its requests cost, in millionths of a US dollar.
    CostMicroUsd,
}

/// Each index with its table and columns. The conditions are those of the queries.
const INDEXES: [(&str, &str); 2] = [
    ("jobs_error_code", "jobs (error_code, created_at, id) WHERE error_code IS NOT NULL"),
    ("assets_error_code", "assets (error_code, job_id) WHERE error_code IS NOT NULL"),
];
const DESCRIPTION_INDEX: &str = "assets_description";

/// The beginning of a description, which the queries repeat word by word. On PostgreSQL, texts are compared by their
/// bytes, as on SQLite.
fn description_columns(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Sqlite => "substr(metadata ->> 'description', 1, 60), job_id",
        _ => "(left(metadata ->> 'description', 60) COLLATE \"C\"), job_id",
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let workers = Table::create()
            .table(Workers::Table)
            .col(uuid(Workers::Id).primary_key())
            .col(string(Workers::Host))
            .col(string(Workers::Version))
            .col(timestamp_with_time_zone(Workers::StartedAt))
            .col(big_integer(Workers::SeenAtMs))
            .col(integer(Workers::Jobs))
            .to_owned();
        manager.create_table(workers).await?;
        let attempts = Table::create()
            .table(Attempts::Table)
            .col(uuid(Attempts::JobId))
            .col(big_integer(Attempts::Token))
            .col(string(Attempts::Worker))
            .col(timestamp_with_time_zone(Attempts::StartedAt))
            .col(timestamp_with_time_zone_null(Attempts::ReleasedAt))
            .col(boolean_null(Attempts::Counted))
            .primary_key(Index::create().col(Attempts::JobId).col(Attempts::Token))
            .to_owned();
        manager.create_table(attempts).await?;
        // Rows that exist, and those that an older version writes, have no cost.
        let cost = big_integer(Assets::CostMicroUsd).default(0).to_owned();
        manager.alter_table(Table::alter().table(Assets::Table).add_column(cost).to_owned()).await?;
        let database = manager.get_connection();
        for (name, columns) in INDEXES {
            database.execute_unprepared(&format!("CREATE INDEX {name} ON {columns}")).await?;
        }
        let columns = description_columns(manager.get_database_backend());
        database.execute_unprepared(&format!("CREATE INDEX {DESCRIPTION_INDEX} ON assets ({columns})")).await.map(drop)
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for name in INDEXES.map(|(name, _)| name).into_iter().chain([DESCRIPTION_INDEX]) {
            manager.get_connection().execute_unprepared(&format!("DROP INDEX {name}")).await?;
        }
        manager.alter_table(Table::alter().table(Assets::Table).drop_column(Assets::CostMicroUsd).to_owned()).await?;
        manager.drop_table(Table::drop().table(Attempts::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(Workers::Table).to_owned()).await
    }
}
