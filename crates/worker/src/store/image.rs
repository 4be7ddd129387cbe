//! One image of a job: its path, its end.

use domain::failure::ImageFailureCode;
use domain::outcome::{Asset, ImageFailure};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, SqlErr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Doing, Store, StoreError, asset};

/// What an image's end cost, to be added to its row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Requests sent.
    pub requests: u32,
    /// Those of them that may have been charged.
    pub charged: u32,
}

fn column(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

impl Store {
    /// Reserves a path for an image. `false` where another image has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn reserve_path(&self, asset_id: Uuid, path: &str) -> Result<bool, StoreError> {
        let reserve = asset::Entity::update_many()
            .col_expr(asset::Column::FilePath, Expr::value(path))
            .filter(asset::Column::Id.eq(asset_id))
            .filter(asset::Column::Status.ne(asset::COMPLETED))
            .exec(&self.db);
        let reserved = async {
            match reserve.await {
                Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => Ok(false),
                result => result.map(|result| result.rows_affected == 1),
            }
        };
        reserved.doing("reserve a path").await
    }

    /// Completes the row of a finished image. A row that is complete already stays as it is.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn complete_image(&self, asset: &Asset, cost: Cost) -> Result<(), StoreError> {
        let metadata = asset::Metadata {
            description: asset.description.clone(),
            index: asset.index,
            prompt: Some(asset.prompt.clone()),
            seed: Some(asset.seed),
            origin: Some(asset.origin),
            uri: Some(asset.uri.clone()),
        };
        asset::Entity::update_many()
            .col_expr(asset::Column::Status, Expr::value(asset::COMPLETED))
            .col_expr(asset::Column::FilePath, Expr::value(asset.file_path.as_str()))
            .col_expr(asset::Column::Metadata, Expr::value(metadata.json()))
            .col_expr(asset::Column::Format, Expr::value(asset.format.as_str()))
            .col_expr(asset::Column::Width, Expr::value(column(asset.width)))
            .col_expr(asset::Column::Height, Expr::value(column(asset.height)))
            .col_expr(asset::Column::SizeBytes, Expr::value(i64::try_from(asset.size_bytes).unwrap_or(i64::MAX)))
            .col_expr(asset::Column::Sha256, Expr::value(asset.sha256.as_str()))
            .col_expr(asset::Column::ErrorCode, Expr::value(Option::<String>::None))
            .col_expr(asset::Column::ErrorMessage, Expr::value(Option::<String>::None))
            .col_expr(asset::Column::Requests, Expr::col(asset::Column::Requests).add(column(cost.requests)))
            .col_expr(asset::Column::Charged, Expr::col(asset::Column::Charged).add(column(cost.charged)))
            .col_expr(asset::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
            .filter(asset::Column::Id.eq(asset.id))
            .filter(asset::Column::Status.ne(asset::COMPLETED))
            .exec(&self.db)
            .doing("complete an image")
            .await
            .map(drop)
    }

    /// Adds to what an image has cost, where it has had no end.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn add_cost(&self, id: Uuid, cost: Cost) -> Result<(), StoreError> {
        asset::Entity::update_many()
            .col_expr(asset::Column::Requests, Expr::col(asset::Column::Requests).add(column(cost.requests)))
            .col_expr(asset::Column::Charged, Expr::col(asset::Column::Charged).add(column(cost.charged)))
            .filter(asset::Column::Id.eq(id))
            .exec(&self.db)
            .doing("count a request")
            .await
            .map(drop)
    }

    /// Records the failure of an image. A row that is complete stays as it is.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn fail_image(&self, id: Uuid, failure: &ImageFailure, cost: Cost) -> Result<(), StoreError> {
        failed(&self.db, id, failure.code, &failure.message, cost).doing("record a failed image").await
    }
}

/// Marks a row as failed unless it is complete, and frees its path for others.
pub(super) async fn failed(
    db: &impl sea_orm::ConnectionTrait,
    id: Uuid,
    code: ImageFailureCode,
    message: &str,
    cost: Cost,
) -> Result<(), sea_orm::DbErr> {
    asset::Entity::update_many()
        .col_expr(asset::Column::Status, Expr::value(asset::FAILED))
        .col_expr(asset::Column::FilePath, Expr::value(Option::<String>::None))
        .col_expr(asset::Column::ErrorCode, Expr::value(code.as_str()))
        .col_expr(asset::Column::ErrorMessage, Expr::value(message))
        .col_expr(asset::Column::Requests, Expr::col(asset::Column::Requests).add(column(cost.requests)))
        .col_expr(asset::Column::Charged, Expr::col(asset::Column::Charged).add(column(cost.charged)))
        .col_expr(asset::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
        .filter(asset::Column::Id.eq(id))
        .filter(asset::Column::Status.ne(asset::COMPLETED))
        .exec(db)
        .await
        .map(drop)
}
