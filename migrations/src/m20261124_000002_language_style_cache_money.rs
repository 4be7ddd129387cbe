//! Translations, project styles, fingerprints of images for the cache, and the spending of each day.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, boolean_null, json, json_null, string, text, timestamp_with_time_zone, uuid_null,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// The job's style, resolved at its first claim.
    Style,
}

#[derive(DeriveIden)]
enum Assets {
    Table,
    /// Cache key: equal for images with the same prompts and generation parameters.
    Fingerprint,
    /// Whether a failure is retryable.
    MayPass,
}

/// A text and its English translation, so that no text is translated twice.
#[derive(DeriveIden)]
enum Translations {
    Table,
    /// SHA-256 of the text.
    Digest,
    Original,
    English,
    /// The translator that was used.
    Translator,
    CreatedAt,
}

/// The style of a project's images, for settings that the command does not set.
#[derive(DeriveIden)]
enum ProjectStyles {
    Table,
    ProjectId,
    Style,
    UpdatedAt,
}

/// The spending of all workers together in one day.
#[derive(DeriveIden)]
enum Spending {
    Table,
    /// The UTC day by the database's clock, such as 2026-11-24.
    Day,
    Requests,
    /// Millionths of a US dollar, so that sums are exact.
    MicroUsd,
}

const ASSETS_FINGERPRINT: &str = "assets_fingerprint";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // One column per statement, because SQLite accepts only one.
        manager.alter_table(Table::alter().table(Jobs::Table).add_column(json_null(Jobs::Style)).to_owned()).await?;
        for column in [uuid_null(Assets::Fingerprint), boolean_null(Assets::MayPass)] {
            manager.alter_table(Table::alter().table(Assets::Table).add_column(column).to_owned()).await?;
        }
        manager
            .create_index(
                Index::create().name(ASSETS_FINGERPRINT).table(Assets::Table).col(Assets::Fingerprint).to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(Translations::Table)
                    .col(string(Translations::Digest).primary_key())
                    .col(text(Translations::Original))
                    .col(text(Translations::English))
                    .col(string(Translations::Translator))
                    .col(timestamp_with_time_zone(Translations::CreatedAt))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(ProjectStyles::Table)
                    .col(big_integer(ProjectStyles::ProjectId).primary_key())
                    .col(json(ProjectStyles::Style))
                    .col(timestamp_with_time_zone(ProjectStyles::UpdatedAt))
                    .to_owned(),
            )
            .await?;
        manager
            .create_table(
                Table::create()
                    .table(Spending::Table)
                    .col(string(Spending::Day).primary_key())
                    .col(big_integer(Spending::Requests))
                    .col(big_integer(Spending::MicroUsd))
                    .to_owned(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Spending::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(ProjectStyles::Table).to_owned()).await?;
        manager.drop_table(Table::drop().table(Translations::Table).to_owned()).await?;
        manager.drop_index(Index::drop().name(ASSETS_FINGERPRINT).table(Assets::Table).to_owned()).await?;
        manager.alter_table(Table::alter().table(Assets::Table).drop_column(Assets::MayPass).to_owned()).await?;
        manager.alter_table(Table::alter().table(Assets::Table).drop_column(Assets::Fingerprint).to_owned()).await?;
        manager.alter_table(Table::alter().table(Jobs::Table).drop_column(Jobs::Style).to_owned()).await
    }
}
