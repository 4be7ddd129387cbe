//! Rows of single images: reserving a path, completing, failing. Only the holder of the job's lease can write them.

use domain::failure::ImageFailureCode;
use domain::generation_params::GenerationParams;
use domain::outcome::{Asset, ImageFailure};
use domain::state::{RowState, Transition, asset as step};
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{ColumnTrait, ConnectionTrait, DbErr, EntityTrait, QueryFilter, SqlErr};
use time::OffsetDateTime;
use uuid::Uuid;

use tracing::Instrument;

use super::lease::only_with_lease;
use super::{Lease, QueryExt, Store, StoreError, asset};

fn to_i32(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// SQL condition: the row is in a state from which the transition is allowed.
fn precondition(step: Transition<RowState>) -> SimpleExpr {
    asset::Column::Status.is_in(step.from.iter().map(|state| state.as_str()))
}

impl Store {
    /// Reserves a path for an image. Returns `false` if another image has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn reserve_path(&self, lease: Lease, asset_id: Uuid, path: &str) -> Result<bool, StoreError> {
        async {
            let doing = "reserve a path";
            let update = asset::Entity::update_many()
                .col_expr(asset::Column::FilePath, Expr::value(path))
                .filter(asset::Column::Id.eq(asset_id))
                .filter(precondition(step::COMPLETE));
            let reserve = async {
                match only_with_lease(update, lease).exec(&self.db).await {
                    Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => Ok(0),
                    result => result.map(|result| result.rows_affected),
                }
            };
            let rows = reserve.with_timeout(doing).await?;
            if rows == 0 {
                self.check_lease(lease, doing).await?;
            }
            Ok(rows > 0)
        }
        .instrument(self.operation_span("reserve", "assets"))
        .await
    }

    /// Completes the row of a generated or cached image. A completed row is not changed.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn complete_image(&self, lease: Lease, asset: &Asset, fingerprint: Uuid) -> Result<(), StoreError> {
        async {
            let doing = "complete an image";
            let metadata = asset::Metadata {
                description: asset.description.clone(),
                index: asset.index,
                params: Some(asset.params.clone()),
                seed: Some(asset.seed),
                origin: Some(asset.origin),
                uri: Some(asset.uri.clone()),
            };
            let update = asset::Entity::update_many()
                .col_expr(asset::Column::Status, Expr::value(step::COMPLETE.to.as_str()))
                .col_expr(asset::Column::FilePath, Expr::value(asset.file_path.as_str()))
                .col_expr(asset::Column::Metadata, Expr::value(metadata.to_json()))
                .col_expr(asset::Column::Format, Expr::value(asset.format.as_str()))
                .col_expr(asset::Column::Width, Expr::value(to_i32(asset.width)))
                .col_expr(asset::Column::Height, Expr::value(to_i32(asset.height)))
                .col_expr(asset::Column::SizeBytes, Expr::value(i64::try_from(asset.size_bytes).unwrap_or(i64::MAX)))
                .col_expr(asset::Column::Sha256, Expr::value(asset.sha256.as_str()))
                .col_expr(asset::Column::ErrorCode, Expr::value(Option::<String>::None))
                .col_expr(asset::Column::ErrorMessage, Expr::value(Option::<String>::None))
                .col_expr(asset::Column::Retryable, Expr::value(Option::<bool>::None))
                .col_expr(asset::Column::Fingerprint, Expr::value(fingerprint))
                .col_expr(asset::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
                .filter(asset::Column::Id.eq(asset.id))
                .filter(precondition(step::COMPLETE));
            let completed = only_with_lease(update, lease).exec(&self.db).with_timeout(doing).await?;
            if completed.rows_affected == 0 {
                self.check_lease(lease, doing).await?;
            }
            Ok(())
        }
        .instrument(self.operation_span("complete", "assets"))
        .await
    }

    /// Records the failure of an image, and its generation parameters if known. A completed row is not changed.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn fail_image(
        &self,
        lease: Lease,
        id: Uuid,
        failure: &ImageFailure,
        params: Option<&GenerationParams>,
    ) -> Result<(), StoreError> {
        async {
            let operation = "record a failed image";
            let transaction = self.begin_with_lease(lease, operation).await?;
            mark_failed(&transaction, id, failure).with_timeout(operation).await?;
            if let Some(params) = params {
                let description = failure.description.clone();
                let params = Some(params.clone());
                let metadata =
                    asset::Metadata { description, index: failure.index, params, ..asset::Metadata::default() };
                asset::Entity::update_many()
                    .col_expr(asset::Column::Metadata, Expr::value(metadata.to_json()))
                    .filter(asset::Column::Id.eq(id))
                    .filter(precondition(step::FAIL))
                    .exec(&transaction)
                    .with_timeout(operation)
                    .await?;
            }
            transaction.commit().with_timeout(operation).await
        }
        .instrument(self.operation_span("fail", "assets"))
        .await
    }
}

/// Marks a row as failed unless it is completed, and frees its path for other images.
///
/// After a storage failure the path stays reserved, since the file may still be written there.
pub(super) async fn mark_failed(db: &impl ConnectionTrait, id: Uuid, failure: &ImageFailure) -> Result<(), DbErr> {
    let path = match failure.code {
        ImageFailureCode::Storage => Expr::col(asset::Column::FilePath),
        _ => Expr::value(Option::<String>::None),
    };
    asset::Entity::update_many()
        .col_expr(asset::Column::Status, Expr::value(step::FAIL.to.as_str()))
        .col_expr(asset::Column::FilePath, path)
        .col_expr(asset::Column::ErrorCode, Expr::value(failure.code.as_str()))
        .col_expr(asset::Column::ErrorMessage, Expr::value(failure.message.as_str()))
        .col_expr(asset::Column::Retryable, Expr::value(failure.retryable))
        .col_expr(asset::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
        .filter(asset::Column::Id.eq(id))
        .filter(precondition(step::FAIL))
        .exec(db)
        .await
        .map(drop)
}
