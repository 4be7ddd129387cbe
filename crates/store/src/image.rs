//! One image of a job: its path, its end. Only the holder of the job's lease writes.

use domain::failure::ImageFailureCode;
use domain::outcome::{Asset, ImageFailure};
use domain::recipe::Recipe;
use domain::state::{RowState, Step, image as step};
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{ColumnTrait, ConnectionTrait, DbErr, EntityTrait, QueryFilter, SqlErr};
use time::OffsetDateTime;
use uuid::Uuid;

use tracing::Instrument;

use super::{Doing, Lease, Store, StoreError, asset, job};

fn column(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// The states that a step can be made from.
fn may(step: Step<RowState>) -> SimpleExpr {
    asset::Column::Status.is_in(step.from.iter().map(|state| state.as_str()))
}

impl Store {
    /// Reserves a path for an image. `false` where another image has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn reserve_path(&self, lease: Lease, asset_id: Uuid, path: &str) -> Result<bool, StoreError> {
        async {
            let doing = "reserve a path";
            let transaction = self.begin_held(lease, doing).await?;
            let reserve = asset::Entity::update_many()
                .col_expr(asset::Column::FilePath, Expr::value(path))
                .filter(asset::Column::Id.eq(asset_id))
                .filter(may(step::COMPLETE))
                .exec(&transaction);
            let reserved = async {
                match reserve.await {
                    Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => Ok(false),
                    result => result.map(|result| result.rows_affected == 1),
                }
            };
            let reserved = reserved.doing(doing).await?;
            if reserved {
                transaction.commit().doing(doing).await?;
            } else {
                transaction.rollback().doing(doing).await?;
            }
            Ok(reserved)
        }
        .instrument(self.asked("reserve", "assets"))
        .await
    }

    /// Completes the row of a finished image. A row that is complete already stays as it is. That an image was finished shows that the job
    /// does not end its workers.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn complete_image(&self, lease: Lease, asset: &Asset, fingerprint: Uuid) -> Result<(), StoreError> {
        async {
            let doing = "complete an image";
            let metadata = asset::Metadata {
                description: asset.description.clone(),
                index: asset.index,
                recipe: Some(asset.recipe.clone()),
                seed: Some(asset.seed),
                origin: Some(asset.origin),
                uri: Some(asset.uri.clone()),
            };
            let transaction = self.begin_held(lease, doing).await?;
            asset::Entity::update_many()
                .col_expr(asset::Column::Status, Expr::value(step::COMPLETE.to.as_str()))
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
                .filter(may(step::COMPLETE))
                .exec(&transaction)
                .doing(doing)
                .await?;
            job::Entity::update_many()
                .col_expr(job::Column::LeaseLosses, Expr::value(0))
                .filter(job::Column::Id.eq(lease.job_id))
                .exec(&transaction)
                .doing(doing)
                .await?;
            transaction.commit().doing(doing).await
        }
        .instrument(self.asked("complete", "assets"))
        .await
    }

    /// Records the failure of an image, and what was asked for where it could be asked for. A row that is complete stays as it is.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn fail_image(
        &self,
        lease: Lease,
        id: Uuid,
        failure: &ImageFailure,
        recipe: Option<&Recipe>,
    ) -> Result<(), StoreError> {
        async {
            let doing = "record a failed image";
            let transaction = self.begin_held(lease, doing).await?;
            failed(&transaction, id, failure).doing(doing).await?;
            if let Some(recipe) = recipe {
                let description = failure.description.clone();
                let recipe = Some(recipe.clone());
                let metadata =
                    asset::Metadata { description, index: failure.index, recipe, ..asset::Metadata::default() };
                asset::Entity::update_many()
                    .col_expr(asset::Column::Metadata, Expr::value(metadata.json()))
                    .filter(asset::Column::Id.eq(id))
                    .filter(may(step::FAIL))
                    .exec(&transaction)
                    .doing(doing)
                    .await?;
            }
            transaction.commit().doing(doing).await
        }
        .instrument(self.asked("fail", "assets"))
        .await
    }
}

/// Marks a row as failed unless it is complete, and frees its path for others; but not where it is the storage that failed, since what it was
/// given may still arrive there.
pub(super) async fn failed(db: &impl ConnectionTrait, id: Uuid, failure: &ImageFailure) -> Result<(), DbErr> {
    let path = match failure.code {
        ImageFailureCode::Storage => Expr::col(asset::Column::FilePath),
        _ => Expr::value(Option::<String>::None),
    };
    asset::Entity::update_many()
        .col_expr(asset::Column::Status, Expr::value(step::FAIL.to.as_str()))
        .col_expr(asset::Column::FilePath, path)
        .col_expr(asset::Column::ErrorCode, Expr::value(failure.code.as_str()))
        .col_expr(asset::Column::ErrorMessage, Expr::value(failure.message.as_str()))
        .col_expr(asset::Column::MayPass, Expr::value(failure.may_pass))
        .col_expr(asset::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
        .filter(asset::Column::Id.eq(id))
        .filter(may(step::FAIL))
        .exec(db)
        .await
        .map(drop)
}
