//! The end of a try, and the end of a job.

use domain::command::JobKey;
use domain::event::{Event, JobError};
use domain::outcome::ImageState;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, TransactionTrait};
use time::OffsetDateTime;
use uuid::Uuid;

use super::image::failed;
use super::{Doing, Store, StoreError, job};

/// How a job ends.
#[derive(Debug)]
pub struct Ending<'a> {
    /// Whose end it is.
    pub key: JobKey,
    /// Its images; those that failed are written as they stand here.
    pub images: &'a [(Uuid, ImageState)],
    /// Why it failed, if it did.
    pub error: Option<&'a JobError>,
    /// What it cost.
    pub cost_usd: f64,
    /// The event that says so.
    pub event: &'a Event,
}

impl Store {
    /// Counts a try that ended without an end of the job.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn count_attempt(&self, job_id: Uuid) -> Result<(), StoreError> {
        job::Entity::update_many()
            .col_expr(job::Column::Attempts, Expr::col(job::Column::Attempts).add(1))
            .col_expr(job::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
            .filter(job::Column::Id.eq(job_id))
            .filter(job::Column::Status.eq(job::RUNNING))
            .exec(&self.db)
            .doing("count a try")
            .await
            .map(drop)
    }

    /// Ends a job: its outcome, its failed images and its terminal event, together or not at all. Where it had ended before, what
    /// stands there stays, and `false` is returned.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn finish(&self, ending: &Ending<'_>) -> Result<bool, StoreError> {
        let doing = "end a job";
        let now = OffsetDateTime::now_utc();
        let status = if ending.error.is_none() { job::COMPLETED } else { job::FAILED };
        let transaction = self.db.begin().doing(doing).await?;
        let ended = job::Entity::update_many()
            .col_expr(job::Column::Status, Expr::value(status))
            .col_expr(job::Column::ErrorCode, Expr::value(ending.error.map(|error| error.code.as_str())))
            .col_expr(job::Column::ErrorMessage, Expr::value(ending.error.map(|error| error.message.as_str())))
            .col_expr(job::Column::CostUsd, Expr::value(ending.cost_usd))
            .col_expr(job::Column::TerminalType, Expr::value(ending.event.kind.as_str()))
            .col_expr(job::Column::TerminalEvent, Expr::value(ending.event.body.as_str()))
            .col_expr(job::Column::UpdatedAt, Expr::value(now))
            .col_expr(job::Column::FinishedAt, Expr::value(now))
            .filter(job::Column::Id.eq(ending.key.job_id))
            .filter(job::Column::Status.eq(job::RUNNING))
            .exec(&transaction)
            .doing(doing)
            .await?;
        if ended.rows_affected == 0 {
            return Ok(false);
        }
        for (id, state) in ending.images {
            if let ImageState::Failed(failure) = state {
                failed(&transaction, *id, failure).doing(doing).await?;
            }
        }
        transaction.commit().doing(doing).await?;
        Ok(true)
    }

    /// Notes that a queue has taken the job's terminal event.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn mark_published(&self, job_id: Uuid) -> Result<(), StoreError> {
        job::Entity::update_many()
            .col_expr(job::Column::PublishedAt, Expr::value(OffsetDateTime::now_utc()))
            .filter(job::Column::Id.eq(job_id))
            .exec(&self.db)
            .doing("note a published event")
            .await
            .map(drop)
    }
}
