//! The sweep: ends cancelled and expired jobs without a lease, in batches, and hands their terminal events to a publisher.
//!
//! One worker sweeps at a time. Nothing depends on that: each update has its precondition.

use std::collections::HashMap;
use std::time::Duration;

use domain::command::Command;
use domain::event::{Event, JobError};
use domain::failure::ImageFailureCode;
use domain::job_over::JobOver;
use domain::outcome::{ImageFailure, ImageState};
use domain::outgoing::OutgoingMessage;
use domain::retry::RetryOrigin;
use domain::state::{JobState, RowState, job as step};
use domain::trace::TraceContext;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, TransactionTrait};
use serde_json::Value;
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::cancel::{is_over, over_of};
use super::claim::{retry_origin, terminal_event};
use super::finish::UnpublishedEvent;
use super::lease::{now_ms, precondition};
use super::outbox::insert_messages;
use super::{QueryExt, Store, StoreError, asset, job};

/// A cancelled or expired job that no worker holds.
#[derive(Debug)]
pub struct DueJob {
    /// Its command.
    pub command: Command,
    /// Why it is over; `None` if it is not, but was read to end it.
    pub over: Option<JobOver>,
    /// Who is told about it beside the consumers of its events.
    pub reply: Option<Value>,
    /// Where its images come from, if it makes images of another job again.
    pub origin: Option<RetryOrigin>,
    /// What it has cost, in USD.
    pub cost_usd: f64,
    /// When it was first claimed.
    pub created_at: OffsetDateTime,
    /// The trace of its last claim.
    pub trace: Option<TraceContext>,
    /// The images by index. Those that were not attempted have failed with `not_attempted`.
    pub images: Vec<ImageState>,
    /// Whether a worker was lost while it ran the job, or an image may have a file that its row does not know.
    pub needs_claim: bool,
    lease_token: i64,
}

/// The end of a job that was waiting.
#[derive(Debug)]
pub struct EndedJob<'a> {
    /// The job, as it was read.
    pub job: &'a DueJob,
    /// Why it failed; `None` if it completed.
    pub error: Option<JobError>,
    /// The terminal event.
    pub event: Event,
    /// Messages that are published before the terminal event.
    pub messages: Vec<OutgoingMessage>,
}

impl Store {
    /// Takes the turn to sweep for `duration`, or prolongs it. Returns whether this caller, named by `holder`, has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the turn was not taken.
    pub async fn take_sweep_turn(&self, holder: Uuid, duration: Duration) -> Result<bool, StoreError> {
        self.take_turn("jobs", holder, duration).await
    }

    /// Cancelled and expired jobs that no worker holds, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_due_jobs(&self, limit: u64) -> Result<Vec<DueJob>, StoreError> {
        async {
            let doing = "find cancelled and expired jobs";
            let backend = self.db.get_database_backend();
            let lost = job::Column::Status
                .eq(JobState::Running.as_str())
                .and(Expr::col(job::Column::LeaseUntilMs).lt(now_ms(backend)));
            let rows = job::Entity::find()
                .filter(job::Column::TerminalEvent.is_null())
                .filter(is_over(backend))
                .filter(job::Column::Status.eq(JobState::Waiting.as_str()).or(lost))
                .limit(limit)
                .all(&self.db)
                .with_timeout(doing)
                .await?;
            let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
            let images = asset::Entity::find()
                .filter(asset::Column::JobId.is_in(ids))
                .order_by_asc(asset::Column::Index)
                .all(&self.db)
                .with_timeout(doing)
                .await?;
            let mut images_by_job: HashMap<Uuid, Vec<asset::Model>> = HashMap::new();
            for image in images {
                images_by_job.entry(image.job_id).or_default().push(image);
            }
            Ok(rows
                .into_iter()
                .filter_map(|row| due_job(&row, &images_by_job.remove(&row.id).unwrap_or_default()))
                .collect())
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// Reads a job that was submitted and has not been claimed or ended; `None` if there is no such job.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_unclaimed_job(&self, job_id: Uuid) -> Result<Option<DueJob>, StoreError> {
        let doing = "read a job";
        let row = job::Entity::find_by_id(job_id)
            .filter(job::Column::Status.eq(JobState::Waiting.as_str()))
            .filter(job::Column::LeaseToken.eq(0))
            .one(&self.db)
            .with_timeout(doing)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let images = asset::read_images(&self.db, job_id).with_timeout(doing).await?;
        Ok(due_job(&row, &images))
    }

    /// Ends jobs that were waiting, in one transaction; their events are due to be published. Returns the number of jobs
    /// that had not been claimed or ended meanwhile.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn end_waiting_jobs(&self, ended: &[EndedJob<'_>]) -> Result<usize, StoreError> {
        async {
            let doing = "end waiting jobs";
            let now = OffsetDateTime::now_utc();
            let transaction = self.db.begin().with_timeout(doing).await?;
            let mut ids = Vec::new();
            for EndedJob { job: due, error, event, messages } in ended {
                let transition = if error.is_none() { step::COMPLETE_WAITING } else { step::FAIL_WAITING };
                let job_id = due.command.job_id;
                let updated = job::Entity::update_many()
                    .col_expr(job::Column::Status, Expr::value(transition.to.as_str()))
                    .col_expr(job::Column::ErrorCode, Expr::value(error.as_ref().map(|error| error.code.as_str())))
                    .col_expr(
                        job::Column::ErrorMessage,
                        Expr::value(error.as_ref().map(|error| error.message.as_str())),
                    )
                    .col_expr(job::Column::TerminalType, Expr::value(event.kind.as_str()))
                    .col_expr(job::Column::TerminalEvent, Expr::value(event.body.as_str()))
                    .col_expr(job::Column::PublishDueAt, Expr::value(now))
                    .col_expr(job::Column::DueAtMs, Expr::value(Option::<i64>::None))
                    .col_expr(job::Column::UpdatedAt, Expr::value(now))
                    .col_expr(job::Column::FinishedAt, Expr::value(now))
                    .filter(job::Column::Id.eq(job_id))
                    .filter(job::Column::LeaseToken.eq(due.lease_token))
                    .filter(precondition(transition))
                    .exec(&transaction)
                    .with_timeout(doing)
                    .await?;
                if updated.rows_affected == 1 {
                    insert_messages(&transaction, job_id, messages).with_timeout(doing).await?;
                    ids.push(job_id);
                }
            }
            asset::Entity::update_many()
                .col_expr(asset::Column::Status, Expr::value(RowState::Failed.as_str()))
                .col_expr(asset::Column::ErrorCode, Expr::value(ImageFailureCode::NotAttempted.as_str()))
                .col_expr(
                    asset::Column::ErrorMessage,
                    Expr::case(asset::Column::Requests.eq(0), ImageFailure::NOT_REQUESTED)
                        .finally(ImageFailure::NOT_MADE)
                        .into(),
                )
                .col_expr(asset::Column::Retryable, Expr::value(false))
                .col_expr(asset::Column::UpdatedAt, Expr::value(now))
                .filter(asset::Column::JobId.is_in(ids.iter().copied()))
                .filter(asset::Column::Status.eq(RowState::Pending.as_str()))
                .exec(&transaction)
                .with_timeout(doing)
                .await?;
            transaction.commit().with_timeout(doing).await?;
            Ok(ids.len())
        }
        .instrument(self.operation_span("finish", "jobs"))
        .await
    }

    /// Records that the terminal event of a job that was taken over is due to be published.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn set_publish_due(&self, job_id: Uuid) -> Result<(), StoreError> {
        job::Entity::update_many()
            .col_expr(job::Column::PublishDueAt, Expr::value(OffsetDateTime::now_utc()))
            .filter(job::Column::Id.eq(job_id))
            .filter(job::Column::TerminalEvent.is_not_null())
            .exec(&self.db)
            .with_timeout("record an event that is due")
            .await
            .map(drop)
    }

    /// Terminal events that are due to be published, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_due_events(&self, limit: u64) -> Result<Vec<UnpublishedEvent>, StoreError> {
        let rows = job::Entity::find()
            .filter(job::Column::PublishDueAt.is_not_null())
            .limit(limit)
            .all(&self.db)
            .with_timeout("find events that are due")
            .instrument(self.operation_span("find", "jobs"))
            .await?;
        let event = |row: &job::Model| {
            let (job_id, finished_at) = (row.id, row.finished_at?);
            Some(UnpublishedEvent { job_id, finished_at, terminal: terminal_event(row)? })
        };
        Ok(rows.iter().filter_map(event).collect())
    }

    /// Records which events that were due a queue has received. The others are kept: no queue was bound for them.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written, and the events are published again.
    pub async fn record_sent_events(&self, received: &[Uuid], kept: &[Uuid]) -> Result<(), StoreError> {
        async {
            let doing = "record published events";
            for (ids, published_at) in [(received, Some(OffsetDateTime::now_utc())), (kept, None)] {
                job::Entity::update_many()
                    .col_expr(job::Column::PublishDueAt, Expr::value(Option::<OffsetDateTime>::None))
                    .col_expr(job::Column::PublishedAt, Expr::value(published_at))
                    .filter(job::Column::Id.is_in(ids.iter().copied()))
                    .exec(&self.db)
                    .with_timeout(doing)
                    .await?;
            }
            Ok(())
        }
        .instrument(self.operation_span("mark_published", "jobs"))
        .await
    }
}

/// The state of an image when its job ends.
fn end_state(image: &asset::Model) -> ImageState {
    match image.state() {
        ImageState::Untried => ImageState::Failed(ImageFailure {
            index: image.image_index(),
            description: image.description(),
            code: ImageFailureCode::NotAttempted,
            message: if image.requests == 0 { ImageFailure::NOT_REQUESTED } else { ImageFailure::NOT_MADE }.to_owned(),
            attempts: u32::try_from(image.requests).unwrap_or_default(),
            retryable: false,
        }),
        state => state,
    }
}

/// A row without a command, which a program of a later version may have written, is left alone.
fn due_job(row: &job::Model, images: &[asset::Model]) -> Option<DueJob> {
    let command: Command = serde_json::from_value(row.command.clone()?).ok()?;
    let may_have_file =
        |image: &asset::Model| image.status != RowState::Completed.as_str() && image.file_path.is_some();
    let needs_claim = row.status == JobState::Running.as_str() || images.iter().any(may_have_file);
    Some(DueJob {
        over: over_of(row),
        reply: row.reply.clone(),
        origin: retry_origin(row, images),
        cost_usd: row.cost_usd,
        created_at: row.created_at,
        trace: TraceContext::parse(row.trace_parent.as_deref(), None),
        images: images.iter().map(end_state).collect(),
        needs_claim,
        lease_token: row.lease_token,
        command,
    })
}
