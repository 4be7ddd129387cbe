//! Tables `jobs` (one row per command) and `assets` (one row per image).

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, double, integer, integer_null, json, json_null, string, string_null, text_null,
    timestamp_with_time_zone, timestamp_with_time_zone_null, uuid,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    Id,
    ProjectId,
    Status,
    /// SHA-256 of the command, or of the raw body if it is invalid; distinguishes a redelivery from a conflict.
    Digest,
    Command,
    Total,
    /// Number of attempts that did not end the job.
    Attempts,
    ErrorCode,
    ErrorMessage,
    CostUsd,
    TraceParent,
    TerminalType,
    /// Body of the terminal event, published byte for byte on every redelivery.
    TerminalEvent,
    /// When the terminal event was confirmed and routed to a queue; null until then.
    PublishedAt,
    CreatedAt,
    UpdatedAt,
    FinishedAt,
}

#[derive(DeriveIden)]
enum Assets {
    Table,
    Id,
    ProjectId,
    JobId,
    Index,
    Type,
    Status,
    FilePath,
    Metadata,
    Format,
    Width,
    Height,
    SizeBytes,
    Sha256,
    ErrorCode,
    ErrorMessage,
    /// Number of requests sent for this image, over all attempts.
    Requests,
    /// Number of those requests that were or may have been charged.
    Charged,
    CreatedAt,
    UpdatedAt,
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .create_table(
                Table::create()
                    .table(Jobs::Table)
                    .col(uuid(Jobs::Id).primary_key())
                    .col(big_integer(Jobs::ProjectId))
                    .col(string(Jobs::Status))
                    .col(string(Jobs::Digest))
                    .col(json_null(Jobs::Command))
                    .col(integer(Jobs::Total))
                    .col(integer(Jobs::Attempts).default(0))
                    .col(string_null(Jobs::ErrorCode))
                    .col(text_null(Jobs::ErrorMessage))
                    .col(double(Jobs::CostUsd).default(0.0))
                    .col(string_null(Jobs::TraceParent))
                    .col(string_null(Jobs::TerminalType))
                    .col(text_null(Jobs::TerminalEvent))
                    .col(timestamp_with_time_zone_null(Jobs::PublishedAt))
                    .col(timestamp_with_time_zone(Jobs::CreatedAt))
                    .col(timestamp_with_time_zone(Jobs::UpdatedAt))
                    .col(timestamp_with_time_zone_null(Jobs::FinishedAt))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(Assets::Table)
                    .col(uuid(Assets::Id).primary_key())
                    .col(big_integer(Assets::ProjectId))
                    .col(uuid(Assets::JobId))
                    .col(integer(Assets::Index))
                    .col(string(Assets::Type))
                    .col(string(Assets::Status))
                    .col(string_null(Assets::FilePath).unique_key())
                    .col(json(Assets::Metadata))
                    .col(string_null(Assets::Format))
                    .col(integer_null(Assets::Width))
                    .col(integer_null(Assets::Height))
                    .col(big_integer_null(Assets::SizeBytes))
                    .col(string_null(Assets::Sha256))
                    .col(string_null(Assets::ErrorCode))
                    .col(text_null(Assets::ErrorMessage))
                    .col(integer(Assets::Requests).default(0))
                    .col(integer(Assets::Charged).default(0))
                    .col(timestamp_with_time_zone(Assets::CreatedAt))
                    .col(timestamp_with_time_zone(Assets::UpdatedAt))
                    .foreign_key(ForeignKey::create().from(Assets::Table, Assets::JobId).to(Jobs::Table, Jobs::Id))
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(
                Index::create()
                    .name("assets_job_id_index")
                    .table(Assets::Table)
                    .col(Assets::JobId)
                    .col(Assets::Index)
                    .unique()
                    .to_owned(),
            )
            .await?;
        manager
            .create_index(Index::create().name("jobs_created_at").table(Jobs::Table).col(Jobs::CreatedAt).to_owned())
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Assets::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(Jobs::Table).to_owned()).await
    }
}
