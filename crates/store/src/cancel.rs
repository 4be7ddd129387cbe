//! Cancelling jobs, and whether a job is over: cancelled, or expired by the database's clock.

use domain::job_over::JobOver;
use domain::state::{JobState, Transition, job as step};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DbBackend, DbErr, EntityTrait, ExprTrait, QueryFilter, TransactionTrait,
    TryInsertResult,
};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::account_key::time_from_ms;
use super::lease::now_ms;
use super::{QueryExt, Store, StoreError, job};

/// The most jobs of one statement.
const CHUNK: usize = 500;

/// The states of a job that can be cancelled.
const UNENDED: Transition<JobState> =
    Transition { from: &[JobState::Waiting, JobState::Running], to: JobState::Failed };

/// What became of a cancellation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cancellation {
    /// Known jobs that end because of it.
    pub cancelled: u64,
    /// Jobs that are not known yet; they end when their command arrives.
    pub remembered: u64,
    /// Jobs that had ended or were cancelled before.
    pub unchanged: u64,
}

impl Store {
    /// Cancels jobs. From the commit on, nothing is paid for them.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn cancel_jobs(&self, job_ids: &[Uuid], reason: Option<&str>) -> Result<Cancellation, StoreError> {
        async {
            let doing = "cancel jobs";
            // Sorted, so that two cancellations of the same jobs do not lock each other out.
            let mut ids = job_ids.to_vec();
            ids.sort_unstable();
            ids.dedup();
            let mut result = Cancellation::default();
            let transaction = self.db.begin().with_timeout(doing).await?;
            for ids in ids.chunks(CHUNK) {
                // Creates the rows of unknown jobs. A claim at the same time waits for the same key.
                let rows = ids.iter().map(|id| placeholder(*id, reason));
                let inserted = job::Entity::insert_many(rows)
                    .on_conflict_do_nothing()
                    .exec_without_returning(&transaction)
                    .with_timeout(doing)
                    .await?;
                let remembered = if let TryInsertResult::Inserted(count) = inserted { count } else { 0 };
                let known = Condition::all().add(job::Column::Id.is_in(ids.iter().copied()));
                let cancelled = mark_cancelled(&transaction, known, reason).with_timeout(doing).await?;
                result.remembered += remembered;
                result.cancelled += cancelled;
                result.unchanged += ids.len() as u64 - remembered - cancelled;
            }
            transaction.commit().with_timeout(doing).await?;
            Ok(result)
        }
        .instrument(self.operation_span("cancel", "jobs"))
        .await
    }

    /// Cancels all known jobs of a project that have not ended, by one statement. Returns their number.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn cancel_project(&self, project_id: i64, reason: Option<&str>) -> Result<u64, StoreError> {
        let of_project = Condition::all().add(job::Column::ProjectId.eq(project_id));
        mark_cancelled(&self.db, of_project, reason)
            .with_timeout("cancel the jobs of a project")
            .instrument(self.operation_span("cancel", "jobs"))
            .await
    }

    /// Why nothing more is paid for a job that has not ended; `None` if requests may be paid for.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known.
    pub async fn read_job_over(&self, job_id: Uuid) -> Result<Option<JobOver>, StoreError> {
        read_over(&self.db, job_id)
            .with_timeout("read whether a job is over")
            .instrument(self.operation_span("find", "jobs"))
            .await
    }

    /// Forgets cancellations of jobs whose command has not arrived for this many days.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn forget_cancellations(&self, days: i64) -> Result<u64, StoreError> {
        let before = OffsetDateTime::now_utc() - time::Duration::days(days);
        job::Entity::delete_many()
            .filter(job::Column::Status.eq(JobState::Cancelled.as_str()))
            .filter(job::Column::CancelledAt.lt(before))
            .exec(&self.db)
            .with_timeout("forget cancellations")
            .await
            .map(|result| result.rows_affected)
    }
}

/// The row of a job that is cancelled before its command has arrived.
fn placeholder(job_id: Uuid, reason: Option<&str>) -> job::ActiveModel {
    let now = OffsetDateTime::now_utc();
    job::ActiveModel {
        id: Set(job_id),
        project_id: Set(0),
        status: Set(step::REMEMBER.to.as_str().to_owned()),
        digest: Set(String::new()),
        total: Set(0),
        attempts: Set(0),
        cost_usd: Set(0.0),
        created_at: Set(now),
        updated_at: Set(now),
        cancelled_at: Set(Some(now)),
        cancel_reason: Set(reason.map(str::to_owned)),
        ..Default::default()
    }
}

/// Marks jobs that have not ended and are not cancelled yet.
async fn mark_cancelled(db: &impl ConnectionTrait, jobs: Condition, reason: Option<&str>) -> Result<u64, DbErr> {
    let updated = job::Entity::update_many()
        .col_expr(job::Column::CancelledAt, Expr::value(OffsetDateTime::now_utc()))
        .col_expr(job::Column::CancelReason, Expr::value(reason.map(str::to_owned)))
        .filter(jobs)
        .filter(super::lease::precondition(UNENDED))
        .filter(job::Column::CancelledAt.is_null())
        .exec(db)
        .await?;
    Ok(updated.rows_affected)
}

/// SQL condition: the job is cancelled or has expired.
pub(super) fn is_over(backend: DbBackend) -> SimpleExpr {
    let expired = Expr::col(job::Column::ExpiresAtMs).lte(now_ms(backend));
    job::Column::CancelledAt.is_not_null().or(expired)
}

/// SQL condition: requests of the job may be paid for.
pub(super) fn is_payable(backend: DbBackend) -> SimpleExpr {
    let unexpired = job::Column::ExpiresAtMs.is_null().or(Expr::col(job::Column::ExpiresAtMs).gt(now_ms(backend)));
    job::Column::CancelledAt.is_null().and(unexpired)
}

/// Why a job that is over is: a cancellation comes before an expiry.
pub(super) fn over_of(row: &job::Model) -> Option<JobOver> {
    if row.cancelled_at.is_some() {
        return Some(JobOver::Cancelled(row.cancel_reason.clone()));
    }
    time_from_ms(row.expires_at_ms?).ok().map(JobOver::Expired)
}

/// Why a job is over; `None` if it is not.
pub(super) async fn read_over(db: &impl ConnectionTrait, job_id: Uuid) -> Result<Option<JobOver>, DbErr> {
    let over = job::Entity::find_by_id(job_id).filter(is_over(db.get_database_backend()));
    Ok(over.one(db).await?.as_ref().and_then(over_of))
}
