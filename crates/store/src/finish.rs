//! The end of a job.

use domain::event::{Event, JobError};
use domain::outcome::ImageState;
use domain::state::job as step;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use time::OffsetDateTime;
use uuid::Uuid;

use tracing::Instrument;

use super::claim::{TerminalEvent, terminal_event};
use super::image::failed;
use super::lease::{held, may};
use super::{Doing, Lease, Store, StoreError, job};

/// How a job ends.
#[derive(Debug)]
pub struct Ending<'a> {
    /// The right to end it.
    pub lease: Lease,
    /// Its images; those that failed are written as they stand here.
    pub images: &'a [(Uuid, ImageState)],
    /// Why it failed, if it did.
    pub error: Option<&'a JobError>,
    /// What it cost.
    pub cost_usd: f64,
    /// The event that says so.
    pub event: &'a Event,
}

/// A job that has a row.
#[derive(Debug)]
pub struct KnownJob {
    /// Its terminal event, if it has ended.
    pub terminal: Option<TerminalEvent>,
}

impl Store {
    /// Ends a job: its outcome, its failed images and its terminal event, together or not at all.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written. Where somebody else has ended it, that is [`StoreError::LeaseLost`].
    pub async fn finish(&self, ending: &Ending<'_>) -> Result<(), StoreError> {
        async {
            let doing = "end a job";
            let now = OffsetDateTime::now_utc();
            let step = if ending.error.is_none() { step::COMPLETE } else { step::FAIL };
            let transaction = self.begin_held(ending.lease, doing).await?;
            let ended = job::Entity::update_many()
                .col_expr(job::Column::Status, Expr::value(step.to.as_str()))
                .col_expr(job::Column::LeaseUntilMs, Expr::value(0_i64))
                .col_expr(job::Column::ErrorCode, Expr::value(ending.error.map(|error| error.code.as_str())))
                .col_expr(job::Column::ErrorMessage, Expr::value(ending.error.map(|error| error.message.as_str())))
                .col_expr(job::Column::CostUsd, Expr::value(ending.cost_usd))
                .col_expr(job::Column::TerminalType, Expr::value(ending.event.kind.as_str()))
                .col_expr(job::Column::TerminalEvent, Expr::value(ending.event.body.as_str()))
                .col_expr(job::Column::UpdatedAt, Expr::value(now))
                .col_expr(job::Column::FinishedAt, Expr::value(now))
                .filter(job::Column::Id.eq(ending.lease.job_id))
                .filter(may(step))
                .exec(&transaction)
                .doing(doing)
                .await?;
            held(ended.rows_affected)?;
            for (id, state) in ending.images {
                if let ImageState::Failed(failure) = state {
                    failed(&transaction, *id, failure).doing(doing).await?;
                }
            }
            transaction.commit().doing(doing).await
        }
        .instrument(self.asked("finish", "jobs"))
        .await
    }

    /// Looks a job up; `None` where no worker has claimed it.
    pub async fn find_job(&self, job_id: Uuid) -> Result<Option<KnownJob>, StoreError> {
        async {
            let row = job::Entity::find_by_id(job_id).one(&self.db).doing("look for a job").await?;
            Ok(row.map(|row| KnownJob { terminal: terminal_event(&row) }))
        }
        .instrument(self.asked("find", "jobs"))
        .await
    }

    /// Terminal events that no queue has taken, the oldest first.
    pub async fn unpublished_events(&self) -> Result<Vec<(Uuid, Event)>, StoreError> {
        let rows = job::Entity::find()
            .filter(job::Column::TerminalEvent.is_not_null())
            .filter(job::Column::PublishedAt.is_null())
            .order_by_asc(job::Column::FinishedAt)
            .all(&self.db)
            .doing("look for terminal events")
            .await?;
        Ok(rows.iter().filter_map(|row| Some((row.id, terminal_event(row)?.event))).collect())
    }

    /// Notes that a queue has taken the job's terminal event.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn mark_published(&self, job_id: Uuid) -> Result<(), StoreError> {
        async {
            job::Entity::update_many()
                .col_expr(job::Column::PublishedAt, Expr::value(OffsetDateTime::now_utc()))
                .filter(job::Column::Id.eq(job_id))
                .exec(&self.db)
                .doing("note a published event")
                .await
                .map(drop)
        }
        .instrument(self.asked("mark_published", "jobs"))
        .await
    }
}
