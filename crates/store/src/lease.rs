//! Who works on a job: claiming, holding and releasing its lease, by the database's clock.
//!
//! The fencing token is checked and the job's row locked in every transaction that writes for the holder, so that nothing of a former holder
//! arrives after somebody else's claim.

use std::time::Duration;

use domain::state::{JobState, Step, job as step};
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, ExprTrait, QueryFilter,
    TransactionTrait,
};
use time::OffsetDateTime;
use uuid::Uuid;

use tracing::Instrument;

use super::dialect::Dialect;
use super::{Doing, Store, StoreError, job};

/// The right to work on a job, until somebody else claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The job.
    pub job_id: Uuid,
    /// The fencing token: the number of the claim.
    pub token: i64,
}

impl Store {
    /// Holds a lease for another `length` from now.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] where somebody else has claimed the job, or it has ended; [`StoreError::Failed`] where it is not known.
    pub async fn renew(&self, lease: Lease, length: Duration) -> Result<(), StoreError> {
        async {
            let renewed = job::Entity::update_many()
                .col_expr(job::Column::LeaseUntilMs, until(self.db.get_database_backend(), length))
                .filter(job::Column::Id.eq(lease.job_id))
                .filter(job::Column::LeaseToken.eq(lease.token))
                .filter(may(step::RENEW))
                .exec(&self.db)
                .doing("renew a lease")
                .await?;
            held(renewed.rows_affected)
        }
        .instrument(self.asked("renew", "jobs"))
        .await
    }

    /// Releases a job for the next worker. `attempt` counts the attempt that ends so.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written, and the lease runs out by itself.
    pub async fn release(&self, lease: Lease, attempt: bool) -> Result<(), StoreError> {
        async {
            let returned = job::Entity::update_many()
                .col_expr(job::Column::Status, Expr::value(step::RETURN.to.as_str()))
                .col_expr(job::Column::LeaseUntilMs, Expr::value(0_i64))
                .col_expr(job::Column::LeaseLosses, Expr::value(0))
                .col_expr(job::Column::Attempts, Expr::col(job::Column::Attempts).add(i32::from(attempt)))
                .col_expr(job::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
                .filter(job::Column::Id.eq(lease.job_id))
                .filter(job::Column::LeaseToken.eq(lease.token))
                .filter(may(step::RETURN))
                .exec(&self.db)
                .doing("release a job")
                .await?;
            held(returned.rows_affected)
        }
        .instrument(self.asked("release", "jobs"))
        .await
    }

    /// A transaction in which the holder of a lease may write: nobody can claim the job before it ends.
    pub(super) async fn begin_held(
        &self,
        lease: Lease,
        doing: &'static str,
    ) -> Result<DatabaseTransaction, StoreError> {
        let transaction = self.db.begin().doing(doing).await?;
        let locked = job::Entity::update_many()
            .col_expr(job::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
            .filter(job::Column::Id.eq(lease.job_id))
            .filter(job::Column::LeaseToken.eq(lease.token))
            .filter(may(step::RENEW))
            .exec(&transaction)
            .doing(doing)
            .await?;
        if locked.rows_affected == 0 {
            transaction.rollback().doing(doing).await?;
            return Err(StoreError::LeaseLost);
        }
        Ok(transaction)
    }
}

/// A statement of the holder that met no row has met somebody else's claim.
pub(super) fn held(rows: u64) -> Result<(), StoreError> {
    if rows == 0 { Err(StoreError::LeaseLost) } else { Ok(()) }
}

/// The states that a step can be made from.
pub(super) fn may(step: Step<JobState>) -> SimpleExpr {
    job::Column::Status.is_in(step.from.iter().map(|state| state.as_str()))
}

/// Takes a job that nobody holds. `None` where its lease is live, or it has ended.
pub(super) async fn taken(db: &impl ConnectionTrait, job_id: Uuid, length: Duration) -> Result<Option<Lease>, DbErr> {
    let backend = db.get_database_backend();
    // A job that is waiting is claimed; one that is running is taken over where its lease has run out, which is a loss.
    let run_out = may(step::TAKE_OVER).and(Expr::col(job::Column::LeaseUntilMs).lt(now_ms(backend)));
    let losses = Expr::case(may(step::TAKE_OVER), Expr::col(job::Column::LeaseLosses).add(1))
        .finally(Expr::col(job::Column::LeaseLosses));
    let taken = job::Entity::update_many()
        .col_expr(job::Column::LeaseLosses, losses.into())
        .col_expr(job::Column::Status, Expr::value(step::CLAIM.to.as_str()))
        .col_expr(job::Column::LeaseToken, Expr::col(job::Column::LeaseToken).add(1_i64))
        .col_expr(job::Column::LeaseUntilMs, until(backend, length))
        .filter(job::Column::Id.eq(job_id))
        .filter(may(step::CLAIM).or(run_out))
        .exec(db)
        .await?;
    if taken.rows_affected == 0 {
        return Ok(None);
    }
    let row = job::Entity::find_by_id(job_id).one(db).await?;
    Ok(row.map(|row| Lease { job_id, token: row.lease_token }))
}

/// The first lease of a job that this transaction has made.
pub(super) async fn opened(db: &impl ConnectionTrait, job_id: Uuid, length: Duration) -> Result<Lease, DbErr> {
    let token = 1;
    job::Entity::update_many()
        .col_expr(job::Column::LeaseToken, Expr::value(token))
        .col_expr(job::Column::LeaseUntilMs, until(db.get_database_backend(), length))
        .filter(job::Column::Id.eq(job_id))
        .exec(db)
        .await?;
    Ok(Lease { job_id, token })
}

fn until(backend: DbBackend, length: Duration) -> SimpleExpr {
    now_ms(backend).add(i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
}

/// Milliseconds since 1970 by the database's clock, at this statement.
fn now_ms(backend: DbBackend) -> SimpleExpr {
    Expr::cust(format!("({}) / 1000", Dialect::of(backend).clock_us))
}
