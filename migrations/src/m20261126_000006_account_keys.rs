//! API keys: whether the API accepts their paid requests, shared by all workers with the same key.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, string, string_null, text_null, uuid_null};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum AccountKeys {
    Table,
    /// The hash of the key, from which the key cannot be derived.
    KeyHash,
    /// accepted, refused, probing or admitting.
    Status,
    /// The failure code of the refusal.
    RefusedCode,
    /// The API's message.
    RefusedDetail,
    /// When the key was refused, in milliseconds since 1970 by the database's clock.
    RefusedSinceMs,
    /// Fencing token of the probes: grows with each probe, and when a refusal ends the current one.
    ProbeNumber,
    /// When the next probe is due, in milliseconds since 1970 by the database's clock.
    ProbeDueMs,
    /// The wait before the next probe, in milliseconds.
    ProbeWaitMs,
    /// The only job that may pay.
    AdmittedJob,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table(AccountKeys::Table)
            .col(string(AccountKeys::KeyHash).primary_key())
            .col(string(AccountKeys::Status))
            .col(string_null(AccountKeys::RefusedCode))
            .col(text_null(AccountKeys::RefusedDetail))
            .col(big_integer(AccountKeys::RefusedSinceMs).default(0))
            .col(big_integer(AccountKeys::ProbeNumber).default(0))
            .col(big_integer(AccountKeys::ProbeDueMs).default(0))
            .col(big_integer(AccountKeys::ProbeWaitMs).default(0))
            .col(uuid_null(AccountKeys::AdmittedJob))
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(AccountKeys::Table).to_owned()).await
    }
}
