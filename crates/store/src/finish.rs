//! Finishing a job, and tracking whether its terminal event is published.

use domain::event::{Event, JobError};
use domain::failure::JobFailureCode;
use domain::job_over::JobOver;
use domain::outcome::ImageState;
use domain::outgoing::OutgoingMessage;
use domain::state::{JobState, job as step};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, Condition, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use tracing::Instrument;

use super::cancel::read_over;
use super::claim::{TerminalEvent, terminal_event};
use super::image::mark_failed;
use super::lease::precondition;
use super::outbox::insert_messages;
use super::{Lease, QueryExt, Store, StoreError, job};

/// The end of a job.
#[derive(Debug)]
pub struct JobEnd<'a> {
    /// The lease of the job.
    pub lease: Lease,
    /// Its images; the failed ones are written to their rows.
    pub images: &'a [(Uuid, ImageState)],
    /// Why the job failed; `None` if it completed.
    pub error: Option<&'a JobError>,
    /// What the job cost, in USD.
    pub cost_usd: f64,
    /// The terminal event.
    pub event: &'a Event,
    /// Messages that are published before the terminal event.
    pub messages: &'a [OutgoingMessage],
}

/// The result of ending a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// Outcome and terminal event are stored.
    Stored,
    /// Nothing was written: the job was cancelled before.
    Over(JobOver),
}

/// A job that has a row in `jobs`.
#[derive(Debug)]
pub struct KnownJob {
    /// Its terminal event, if the job has ended.
    pub terminal_event: Option<TerminalEvent>,
    /// Whether a worker has claimed it and neither ended nor released it. That worker is running it or was lost.
    pub is_running: bool,
    /// Whether a worker has claimed it. The rows of a job that was submitted are written before.
    pub was_claimed: bool,
    /// Who is told about it beside the consumers of its events.
    pub reply: Option<Value>,
}

/// Maximum number of events of one query; a terminal event can take a megabyte.
const EVENTS_PAGE_SIZE: u64 = 100;

/// A terminal event that no queue has received yet.
#[derive(Debug)]
pub struct UnpublishedEvent {
    /// The job's id.
    pub job_id: Uuid,
    /// When the job ended.
    pub finished_at: OffsetDateTime,
    /// The event.
    pub terminal: TerminalEvent,
}

impl Store {
    /// Ends a job: writes its outcome, its failed images and its terminal event in one transaction.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written. [`StoreError::LeaseLost`] if another worker has claimed or ended the job.
    pub async fn finish(&self, ending: &JobEnd<'_>) -> Result<Finish, StoreError> {
        async {
            let doing = "finish a job";
            let now = OffsetDateTime::now_utc();
            let transition = if ending.error.is_none() { step::COMPLETE } else { step::FAIL };
            let transaction = self.begin_with_lease(ending.lease, doing).await?;
            let is_cancellation = ending.error.is_some_and(|error| error.code == JobFailureCode::Cancelled);
            let not_cancelled = job::Column::CancelledAt.is_null();
            let ended = job::Entity::update_many()
                .col_expr(job::Column::Status, Expr::value(transition.to.as_str()))
                .col_expr(job::Column::LeaseUntilMs, Expr::value(0_i64))
                .col_expr(job::Column::ErrorCode, Expr::value(ending.error.map(|error| error.code.as_str())))
                .col_expr(job::Column::ErrorMessage, Expr::value(ending.error.map(|error| error.message.as_str())))
                .col_expr(job::Column::CostUsd, Expr::value(ending.cost_usd))
                .col_expr(job::Column::TerminalType, Expr::value(ending.event.kind.as_str()))
                .col_expr(job::Column::TerminalEvent, Expr::value(ending.event.body.as_str()))
                .col_expr(job::Column::UpdatedAt, Expr::value(now))
                .col_expr(job::Column::FinishedAt, Expr::value(now))
                .filter(job::Column::Id.eq(ending.lease.job_id))
                .filter(precondition(transition))
                .filter(Condition::all().add_option((!is_cancellation).then_some(not_cancelled)))
                .exec(&transaction)
                .with_timeout(doing)
                .await?;
            if ended.rows_affected == 0 {
                // The row is locked and the lease was checked: the job was cancelled first.
                let over = read_over(&transaction, ending.lease.job_id).with_timeout(doing).await?;
                transaction.rollback().with_timeout(doing).await?;
                return over.map(Finish::Over).ok_or(StoreError::LeaseLost);
            }
            for (id, state) in ending.images {
                if let ImageState::Failed(failure) = state {
                    mark_failed(&transaction, *id, failure).with_timeout(doing).await?;
                }
            }
            insert_messages(&transaction, ending.lease.job_id, ending.messages).with_timeout(doing).await?;
            transaction.commit().with_timeout(doing).await?;
            Ok(Finish::Stored)
        }
        .instrument(self.operation_span("finish", "jobs"))
        .await
    }

    /// Finds a job; `None` if it has no row: it was not submitted, claimed, or recorded as failed.
    pub async fn find_job(&self, job_id: Uuid) -> Result<Option<KnownJob>, StoreError> {
        async {
            // A job of which only the cancellation is known was never claimed.
            let claimed = job::Column::Status.ne(JobState::Cancelled.as_str());
            let row = job::Entity::find_by_id(job_id).filter(claimed).one(&self.db).with_timeout("find a job").await?;
            let is_running = |row: &job::Model| row.status == JobState::Running.as_str();
            Ok(row.map(|row| KnownJob {
                terminal_event: terminal_event(&row),
                is_running: is_running(&row),
                was_claimed: row.lease_token > 0,
                reply: row.reply,
            }))
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// Terminal events that no queue has received yet: the oldest ones that ended after the job `after`, at most 100.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_unpublished_events(
        &self,
        after: Option<&UnpublishedEvent>,
    ) -> Result<Vec<UnpublishedEvent>, StoreError> {
        let (finished_at, id) = (job::Column::FinishedAt, job::Column::Id);
        let mut query = job::Entity::find()
            .filter(job::Column::TerminalEvent.is_not_null())
            .filter(job::Column::PublishedAt.is_null())
            .order_by_asc(finished_at)
            .order_by_asc(id)
            .limit(EVENTS_PAGE_SIZE);
        if let Some(last) = after {
            let same_time = finished_at.eq(last.finished_at).and(id.gt(last.job_id));
            query = query.filter(finished_at.gt(last.finished_at).or(same_time));
        }
        let rows = query.all(&self.db).with_timeout("find unpublished terminal events").await?;
        let event = |row: &job::Model| {
            let (job_id, finished_at) = (row.id, row.finished_at?);
            Some(UnpublishedEvent { job_id, finished_at, terminal: terminal_event(row)? })
        };
        Ok(rows.iter().filter_map(event).collect())
    }

    /// Records that a queue has received the job's terminal event.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn mark_published(&self, job_id: Uuid) -> Result<(), StoreError> {
        async {
            job::Entity::update_many()
                .col_expr(job::Column::PublishedAt, Expr::value(OffsetDateTime::now_utc()))
                .filter(job::Column::Id.eq(job_id))
                .exec(&self.db)
                .with_timeout("mark a terminal event as published")
                .await
                .map(drop)
        }
        .instrument(self.operation_span("mark_published", "jobs"))
        .await
    }
}
