//! The HTTP API: its audit, and indexes for its lists of jobs.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{string, text_null, timestamp_with_time_zone, uuid, uuid_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// A row for each call of the HTTP API that may change something. Rows are only added.
#[derive(DeriveIden)]
enum Audit {
    Table,
    /// Grows with time.
    Id,
    At,
    /// Which token the caller had.
    Role,
    /// The caller's IP address.
    Address,
    Action,
    /// The job that the call names.
    JobId,
    /// What else the call names, such as a dead letter or a reason.
    Detail,
}

/// Each index with its table and columns. The order is that of the list: newest first.
const INDEXES: [(&str, &str); 3] = [
    ("jobs_created_at_id", "jobs (created_at, id)"),
    ("jobs_project_id_created_at_id", "jobs (project_id, created_at, id)"),
    ("jobs_status_created_at_id", "jobs (status, created_at, id)"),
];
/// Indexes that those replace.
const REPLACED: [(&str, &str); 2] =
    [("jobs_created_at", "jobs (created_at)"), ("jobs_project_id_created_at", "jobs (project_id, created_at)")];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let audit = Table::create()
            .table(Audit::Table)
            .col(uuid(Audit::Id).primary_key())
            .col(timestamp_with_time_zone(Audit::At))
            .col(string(Audit::Role))
            .col(string(Audit::Address))
            .col(string(Audit::Action))
            .col(uuid_null(Audit::JobId))
            .col(text_null(Audit::Detail))
            .to_owned();
        manager.create_table(audit).await?;
        replace_indexes(manager, &REPLACED, &INDEXES).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        replace_indexes(manager, &INDEXES, &REPLACED).await?;
        manager.drop_table(Table::drop().table(Audit::Table).to_owned()).await
    }
}

async fn replace_indexes(manager: &SchemaManager<'_>, old: &[(&str, &str)], new: &[(&str, &str)]) -> Result<(), DbErr> {
    for (name, columns) in new {
        manager.get_connection().execute_unprepared(&format!("CREATE INDEX {name} ON {columns}")).await?;
    }
    for (name, _) in old {
        manager.get_connection().execute_unprepared(&format!("DROP INDEX {name}")).await?;
    }
    Ok(())
}
