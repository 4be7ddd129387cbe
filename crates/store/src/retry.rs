//! Jobs that make images of another job again. Their rows are written before their commands are published.

use domain::failure::JobFailureCode;
use domain::retry::{Retry, RetrySource};
use domain::state::{JobState, job as step};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, TransactionTrait};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::claim::{new_asset_rows, new_job_row};
use super::submit::{Submission, insert_submitted, to_ms};
use super::{QueryExt, Store, StoreError, asset, job};

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
            let images = asset::read_images(&self.db, job_id).with_timeout(doing).await?;
            let ended_retries = job::Entity::find()
                .select_only()
                .column(job::Column::Id)
                .filter(job::Column::RetryOf.eq(job_id))
                .filter(job::Column::TerminalEvent.is_not_null().or(job::Column::PurgedAt.is_not_null()))
                .into_tuple()
                .all(&self.db)
                .with_timeout(doing)
                .await?;
            Ok(Some(RetrySource {
                command,
                images: images.iter().map(asset::Model::state).collect(),
                seed_indexes: images.iter().map(asset::Model::seed_index).collect(),
                has_ended: row.terminal_event.is_some(),
                ended_retries,
            }))
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// The jobs that have failed since then, of all projects or one, oldest first. Jobs that were cancelled, that expired
    /// or whose failed images another job makes or made again are left out; a job whose command may not have been
    /// published does not count.
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
        // The images of a purged retry are not known any more.
        let is_retried = Expr::cust(
            "(EXISTS (SELECT 1 FROM jobs retry WHERE retry.retry_of = jobs.id AND retry.purged_at IS NOT NULL) \
             OR EXISTS (SELECT 1 FROM jobs retry JOIN assets made ON made.job_id = retry.id JOIN assets failed \
             ON failed.job_id = retry.retry_of AND failed.\"index\" = made.original_index AND failed.status = 'failed' \
             WHERE retry.retry_of = jobs.id AND (retry.lease_token > 0 OR retry.terminal_event IS NOT NULL)))",
        );
        let mut query = job::Entity::find()
            .select_only()
            .column(job::Column::Id)
            .filter(job::Column::Status.eq(JobState::Failed.as_str()))
            .filter(job::Column::FinishedAt.gte(since))
            .filter(job::Column::ErrorCode.is_not_in(over))
            .filter(is_retried.not())
            .order_by_asc(job::Column::FinishedAt);
        if let Some(project_id) = project_id {
            query = query.filter(job::Column::ProjectId.eq(project_id));
        }
        query.into_tuple().all(&self.db).with_timeout("find failed jobs").await
    }

    /// Writes the rows of a job that makes images of another one again, unless they exist. A sweep publishes its command
    /// at `due_at`, in case that the caller is lost before it has published it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn submit_retry(&self, retry: &Retry, due_at: OffsetDateTime) -> Result<Submission, StoreError> {
        async {
            let doing = "submit a job";
            let Retry { command, origin, seed_indexes } = retry;
            let digest = command.digest();
            let transaction = self.db.begin().with_timeout(doing).await?;
            let row = job::ActiveModel {
                status: Set(step::SUBMIT.to.as_str().to_owned()),
                due_at_ms: Set(Some(to_ms(due_at))),
                retry_of: Set(Some(origin.retry_of)),
                ..new_job_row(command, &digest, None)
            };
            let index = |index: u32| Set(i32::try_from(index).ok());
            let origins = origin.original_indexes.iter().zip(seed_indexes);
            let assets = new_asset_rows(command).zip(origins).map(|(row, (original_index, seed_index))| {
                asset::ActiveModel { original_index: index(*original_index), seed_index: index(*seed_index), ..row }
            });
            let submission = insert_submitted(&transaction, row, assets).with_timeout(doing).await?;
            transaction.commit().with_timeout(doing).await?;
            Ok(submission)
        }
        .instrument(self.operation_span("insert", "jobs"))
        .await
    }
}
