//! Jobs that make images of another job again. Their rows are written before their commands are published.

use domain::command::Command;
use domain::failure::JobFailureCode;
use domain::outcome::ImageState;
use domain::retry::{Retry, RetryOrigin};
use domain::state::{JobState, job as step};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{
    ColumnTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, TransactionTrait,
    TryInsertResult,
};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::claim::{new_asset_rows, new_job_row};
use super::{QueryExt, Store, StoreError, asset, job};

/// A job whose images may be made again.
#[derive(Debug)]
pub struct RetrySource {
    /// Its command.
    pub command: Command,
    /// Its images by index.
    pub images: Vec<ImageState>,
    /// Whether it has ended.
    pub has_ended: bool,
    /// The number of its retries that have ended.
    pub ended_retries: u32,
}

impl Store {
    /// Reads a job whose images may be made again; `None` if it is not known, or its command was invalid.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_retry_source(&self, job_id: Uuid) -> Result<Option<RetrySource>, StoreError> {
        async {
            let doing = "read a job";
            let row = job::Entity::find_by_id(job_id).one(&self.db).with_timeout(doing).await?;
            let Some(row) = row else { return Ok(None) };
            let command = row.command.and_then(|command| serde_json::from_value(command).ok());
            let Some(command) = command else { return Ok(None) };
            let images = asset::Entity::find()
                .filter(asset::Column::JobId.eq(job_id))
                .order_by_asc(asset::Column::Index)
                .all(&self.db)
                .with_timeout(doing)
                .await?;
            let ended_retries = job::Entity::find()
                .filter(job::Column::RetryOf.eq(job_id))
                .filter(job::Column::TerminalEvent.is_not_null())
                .count(&self.db)
                .with_timeout(doing)
                .await?;
            Ok(Some(RetrySource {
                command,
                images: images.iter().map(asset::Model::state).collect(),
                has_ended: row.terminal_event.is_some(),
                ended_retries: u32::try_from(ended_retries).unwrap_or(u32::MAX),
            }))
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// The jobs that have failed since then, of all projects or one, oldest first. Jobs that were cancelled, that expired
    /// or whose images are already being made again are left out.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_failed_jobs(
        &self,
        since: OffsetDateTime,
        project_id: Option<i64>,
    ) -> Result<Vec<Uuid>, StoreError> {
        let over = [JobFailureCode::Cancelled, JobFailureCode::Expired].map(JobFailureCode::as_str);
        let retried = Query::select()
            .column(job::Column::RetryOf)
            .from(job::Entity)
            .and_where(job::Column::RetryOf.is_not_null())
            .to_owned();
        let mut query = job::Entity::find()
            .select_only()
            .column(job::Column::Id)
            .filter(job::Column::Status.eq(JobState::Failed.as_str()))
            .filter(job::Column::FinishedAt.gte(since))
            .filter(job::Column::ErrorCode.is_not_in(over))
            .filter(job::Column::Id.not_in_subquery(retried))
            .order_by_asc(job::Column::FinishedAt);
        if let Some(project_id) = project_id {
            query = query.filter(job::Column::ProjectId.eq(project_id));
        }
        query.into_tuple().all(&self.db).with_timeout("find failed jobs").await
    }

    /// Writes the rows of a job that makes images of another one again. Returns whether its command is to be published:
    /// it was not claimed yet.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn submit_retry(&self, retry: &Retry) -> Result<bool, StoreError> {
        async {
            let doing = "submit a job";
            let Retry { command, origin } = retry;
            let transaction = self.db.begin().with_timeout(doing).await?;
            let mut row = new_job_row(command, &command.digest());
            row.status = Set(step::SUBMIT.to.as_str().to_owned());
            row.retry_of = Set(Some(origin.retry_of));
            let inserted = job::Entity::insert(row)
                .on_conflict_do_nothing()
                .exec_without_returning(&transaction)
                .with_timeout(doing)
                .await?;
            if matches!(inserted, TryInsertResult::Inserted(1..)) {
                let original_index = |index: &u32| Set(i32::try_from(*index).ok());
                let rows = new_asset_rows(command).zip(&origin.original_indexes).map(|(mut row, index)| {
                    row.original_index = original_index(index);
                    row
                });
                asset::Entity::insert_many(rows).exec_without_returning(&transaction).with_timeout(doing).await?;
            }
            let unclaimed = job::Entity::find_by_id(command.job_id)
                .filter(job::Column::LeaseToken.eq(0))
                .filter(job::Column::TerminalEvent.is_null())
                .filter(Expr::col(job::Column::Status).eq(JobState::Waiting.as_str()))
                .count(&transaction)
                .with_timeout(doing)
                .await?;
            transaction.commit().with_timeout(doing).await?;
            Ok(unclaimed > 0)
        }
        .instrument(self.operation_span("insert", "jobs"))
        .await
    }
}

/// Where the images of a job come from, if it makes images of another one again.
pub(super) fn retry_origin(row: &job::Model, images: &[asset::Model]) -> Option<RetryOrigin> {
    let original_index = |image: &asset::Model| u32::try_from(image.original_index?).ok();
    Some(RetryOrigin { retry_of: row.retry_of?, original_indexes: images.iter().filter_map(original_index).collect() })
}
