//! What a job needs besides its rows: translations, a project's style, images found by fingerprint, money spent in a day.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, boolean_null, json, json_null, string, text, timestamp_with_time_zone, uuid_null,
};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[derive(DeriveIden)]
enum Jobs {
    Table,
    /// The style as it was when the job was first claimed.
    Style,
}

#[derive(DeriveIden)]
enum Assets {
    Table,
    /// Equal for images that can stand in for each other.
    Fingerprint,
    /// Whether a failure may pass.
    MayPass,
}

/// A text and its English, so that nothing is translated twice.
#[derive(DeriveIden)]
enum Translations {
    Table,
    /// SHA-256 of the text.
    Digest,
    Original,
    English,
    /// Who translated it.
    Translator,
    CreatedAt,
}

/// How a project's images look where the command leaves it open.
#[derive(DeriveIden)]
enum ProjectStyles {
    Table,
    ProjectId,
    Style,
    UpdatedAt,
}

/// What all workers together spend in a day.
#[derive(DeriveIden)]
enum Spending {
    Table,
    /// The day in UTC, by the database's clock: 2026-11-24.
    Day,
    Requests,
    /// Millionths of a US dollar, so that sums are exact.
    MicroUsd,
}

const ASSETS_FINGERPRINT: &str = "assets_fingerprint";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // One column a statement: SQLite takes no more.
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
