//! Cancelled and expiring jobs, and terminal events that a sweep has stored for publishing.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, string, text_null, timestamp_with_time_zone_null, uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// When the job was cancelled; null if it was not.
    CancelledAt,
    CancelReason,
    /// From when on nothing is paid for, in milliseconds since 1970 by the database's clock.
    ExpiresAtMs,
    /// Since when the terminal event waits to be published by a sweep.
    PublishDueAt,
}

#[derive(DeriveIden)]
enum Sweeps {
    Table,
    Name,
    /// The worker that sweeps.
    Holder,
    /// That worker has the turn until then, in milliseconds since 1970 by the database's clock.
    UntilMs,
}

/// Each index with its table and columns. The conditions are those of the queries.
const INDEXES: [(&str, &str); 3] = [
    ("jobs_cancelled", "jobs (cancelled_at) WHERE cancelled_at IS NOT NULL AND terminal_event IS NULL"),
    ("jobs_expiring", "jobs (expires_at_ms) WHERE expires_at_ms IS NOT NULL AND terminal_event IS NULL"),
    ("jobs_publish_due", "jobs (publish_due_at) WHERE publish_due_at IS NOT NULL"),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite adds one column per statement.
        for column in [
            timestamp_with_time_zone_null(Jobs::CancelledAt),
            text_null(Jobs::CancelReason),
            big_integer_null(Jobs::ExpiresAtMs),
            timestamp_with_time_zone_null(Jobs::PublishDueAt),
        ] {
            manager.alter_table(Table::alter().table(Jobs::Table).add_column(column).to_owned()).await?;
        }
        let sweeps = Table::create()
            .table(Sweeps::Table)
            .col(string(Sweeps::Name).primary_key())
            .col(uuid(Sweeps::Holder))
            .col(big_integer(Sweeps::UntilMs))
            .to_owned();
        manager.create_table(sweeps).await?;
        for (name, columns) in INDEXES {
            manager.get_connection().execute_unprepared(&format!("CREATE INDEX {name} ON {columns}")).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, _) in INDEXES {
            manager.get_connection().execute_unprepared(&format!("DROP INDEX {name}")).await?;
        }
        manager.drop_table(Table::drop().table(Sweeps::Table).to_owned()).await?;
        for column in [Jobs::PublishDueAt, Jobs::ExpiresAtMs, Jobs::CancelReason, Jobs::CancelledAt] {
            manager.alter_table(Table::alter().table(Jobs::Table).drop_column(column).to_owned()).await?;
        }
        Ok(())
    }
}
