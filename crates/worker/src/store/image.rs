//! One image of a job: its path, its end.

use domain::outcome::{Asset, ImageFailure};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, SqlErr};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Doing, Store, StoreError, asset};

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
    pub async fn complete_image(&self, asset: &Asset, fingerprint: Uuid) -> Result<(), StoreError> {
        let metadata = asset::Metadata {
            description: asset.description.clone(),
            index: asset.index,
            recipe: Some(asset.recipe.clone()),
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
            .col_expr(asset::Column::MayPass, Expr::value(Option::<bool>::None))
            .col_expr(asset::Column::Fingerprint, Expr::value(fingerprint))
            .col_expr(asset::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
            .filter(asset::Column::Id.eq(asset.id))
            .filter(asset::Column::Status.ne(asset::COMPLETED))
            .exec(&self.db)
            .doing("complete an image")
            .await
            .map(drop)
    }

    /// Records the failure of an image. A row that is complete stays as it is.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn fail_image(&self, id: Uuid, failure: &ImageFailure) -> Result<(), StoreError> {
        failed(&self.db, id, failure).doing("record a failed image").await
    }
}

/// Marks a row as failed unless it is complete, and frees its path for others.
pub(super) async fn failed(
    db: &impl sea_orm::ConnectionTrait,
    id: Uuid,
    failure: &ImageFailure,
) -> Result<(), sea_orm::DbErr> {
    asset::Entity::update_many()
        .col_expr(asset::Column::Status, Expr::value(asset::FAILED))
        .col_expr(asset::Column::FilePath, Expr::value(Option::<String>::None))
        .col_expr(asset::Column::ErrorCode, Expr::value(failure.code.as_str()))
        .col_expr(asset::Column::ErrorMessage, Expr::value(failure.message.as_str()))
        .col_expr(asset::Column::MayPass, Expr::value(failure.may_pass))
        .col_expr(asset::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
        .filter(asset::Column::Id.eq(id))
        .filter(asset::Column::Status.ne(asset::COMPLETED))
        .exec(db)
        .await
        .map(drop)
}
