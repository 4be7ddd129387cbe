//! Jobs whose rows are written before their commands are published; some of them are due later.

use domain::command::Command;
use domain::state::{JobState, job as step};
use domain::trace::TraceContext;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
    TransactionTrait, TryInsertResult,
};
use serde_json::Value;
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::claim::{fill_remembered_job, new_asset_rows, new_job_row};
use super::lease::now_ms;
use super::{QueryExt, Store, StoreError, asset, job};

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submission {
    /// The rows of the job were written: its command is to be published.
    New,
    /// It was submitted before, and waits for its first claim: its command may not be on the queue.
    Waiting,
    /// It was claimed, and has not ended.
    Running,
    /// It has ended.
    Ended,
    /// The id belongs to another command. Nothing was written.
    Conflict,
}

/// The command of a job that is due.
#[derive(Debug)]
pub struct DueCommand {
    /// The id of its job.
    pub job_id: Uuid,
    /// The command as JSON.
    pub body: String,
    /// The trace that it was received with.
    pub trace: Option<TraceContext>,
    /// Who is told about the job beside the consumers of its events.
    pub reply: Option<Value>,
}

impl Store {
    /// Writes the rows of a job whose command a sweep publishes at `due_at`, unless they exist. A job that is published
    /// at once is due a little later, in case that its publisher is lost.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn submit_job(
        &self,
        command: &Command,
        due_at: OffsetDateTime,
        trace: Option<&TraceContext>,
        reply: Option<&Value>,
    ) -> Result<Submission, StoreError> {
        async {
            let doing = "submit a job";
            let digest = command.digest();
            let row = job::ActiveModel {
                status: Set(step::SUBMIT.to.as_str().to_owned()),
                due_at_ms: Set(Some(to_ms(due_at))),
                trace_parent: Set(trace.map(|trace| trace.parent.as_str().to_owned())),
                ..new_job_row(command, &digest, reply)
            };
            let transaction = self.db.begin().with_timeout(doing).await?;
            let assets = new_asset_rows(command);
            let submission = insert_submitted(&transaction, row, assets).with_timeout(doing).await?;
            transaction.commit().with_timeout(doing).await?;
            Ok(submission)
        }
        .instrument(self.operation_span("insert", "jobs"))
        .await
    }

    /// Jobs that have not ended and whose reply has one of these ids, each with that id.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn find_open_jobs_by_reply(&self, ids: &[String]) -> Result<Vec<(Uuid, String)>, StoreError> {
        let reply_id = "reply ->> 'id'";
        job::Entity::find()
            .select_only()
            .column(job::Column::Id)
            .expr_as(Expr::cust(reply_id), "reply_id")
            .filter(job::Column::TerminalEvent.is_null())
            .filter(job::Column::Reply.is_not_null())
            .filter(Expr::cust(reply_id).is_in(ids))
            .into_tuple()
            .all(&self.db)
            .with_timeout("find jobs by their replies")
            .instrument(self.operation_span("find", "jobs"))
            .await
    }

    /// Commands of jobs that are due, at most `limit`, the oldest ones first.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_due_commands(&self, limit: u64) -> Result<Vec<DueCommand>, StoreError> {
        let rows = job::Entity::find()
            .filter(job::Column::DueAtMs.is_not_null())
            .filter(Expr::col(job::Column::DueAtMs).lte(now_ms(self.db.get_database_backend())))
            .filter(job::Column::Status.eq(JobState::Waiting.as_str()))
            .order_by_asc(job::Column::DueAtMs)
            .limit(limit)
            .all(&self.db)
            .with_timeout("find jobs that are due")
            .instrument(self.operation_span("find", "jobs"))
            .await?;
        let command = |row: job::Model| {
            let trace = TraceContext::parse(row.trace_parent.as_deref(), None);
            Some(DueCommand { job_id: row.id, body: row.command?.to_string(), trace, reply: row.reply })
        };
        Ok(rows.into_iter().filter_map(command).collect())
    }

    /// Records that the commands of these jobs are on the queue.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written, and the commands are published again.
    pub async fn mark_commands_published(&self, job_ids: &[Uuid]) -> Result<(), StoreError> {
        job::Entity::update_many()
            .col_expr(job::Column::DueAtMs, Expr::value(Option::<i64>::None))
            .filter(job::Column::Id.is_in(job_ids.iter().copied()))
            .exec(&self.db)
            .with_timeout("record published commands")
            .instrument(self.operation_span("update", "jobs"))
            .await
            .map(drop)
    }
}

/// Milliseconds since 1970.
pub(super) fn to_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// Inserts the rows of a job, unless it has a row, and returns what that row says.
pub(super) async fn insert_submitted(
    db: &DatabaseTransaction,
    row: job::ActiveModel,
    assets: impl Iterator<Item = asset::ActiveModel>,
) -> Result<Submission, DbErr> {
    let (id, digest) = (row.id.clone().unwrap(), row.digest.clone().unwrap());
    let inserted = job::Entity::insert(row.clone()).on_conflict_do_nothing().exec_without_returning(db).await?;
    let is_new = matches!(inserted, TryInsertResult::Inserted(1..)) || {
        let status = Set(step::SUBMIT_REMEMBERED.to.as_str().to_owned());
        fill_remembered_job(db, job::ActiveModel { status, ..row }).await?
    };
    if is_new {
        asset::Entity::insert_many(assets).exec_without_returning(db).await?;
        return Ok(Submission::New);
    }
    Ok(match job::Entity::find_by_id(id).one(db).await? {
        Some(row) if row.digest != digest => Submission::Conflict,
        Some(row) if row.terminal_event.is_some() || row.status == JobState::Purged.as_str() => Submission::Ended,
        Some(row) if row.lease_token > 0 => Submission::Running,
        Some(_) | None => Submission::Waiting,
    })
}
