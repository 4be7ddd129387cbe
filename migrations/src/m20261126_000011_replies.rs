//! Who is told about a job, messages for them, and jobs that are due later.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer_null, integer, json, json_null, uuid};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// Who is told about the job beside the consumers of its events, in the format of its sender.
    Reply,
    /// When the command is published, in milliseconds since 1970; null if it is on a queue.
    DueAtMs,
}

#[derive(DeriveIden)]
enum Outbox {
    Table,
    JobId,
    /// Messages of a job are published in this order.
    Position,
    Message,
}

const INDEX: &str = "jobs_due";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in [json_null(Jobs::Reply), big_integer_null(Jobs::DueAtMs)] {
            manager.alter_table(Table::alter().table(Jobs::Table).add_column(column).to_owned()).await?;
        }
        let outbox = Table::create()
            .table(Outbox::Table)
            .col(uuid(Outbox::JobId))
            .col(integer(Outbox::Position))
            .col(json(Outbox::Message))
            .primary_key(Index::create().col(Outbox::JobId).col(Outbox::Position))
            .to_owned();
        manager.create_table(outbox).await?;
        let columns = "jobs (due_at_ms) WHERE due_at_ms IS NOT NULL";
        manager.get_connection().execute_unprepared(&format!("CREATE INDEX {INDEX} ON {columns}")).await?;
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.get_connection().execute_unprepared(&format!("DROP INDEX {INDEX}")).await?;
        manager.drop_table(Table::drop().table(Outbox::Table).to_owned()).await?;
        for column in [Jobs::DueAtMs, Jobs::Reply] {
            manager.alter_table(Table::alter().table(Jobs::Table).drop_column(column).to_owned()).await?;
        }
        Ok(())
    }
}
