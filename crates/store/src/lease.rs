//! Job leases: acquire, renew and release, by the database's clock.
//!
//! Every transaction of a lease holder checks the fencing token and locks the job's row, so that a former holder cannot
//! write after another worker has claimed the job. A write to one row of an image is a transaction of one statement.

use std::time::Duration;

use domain::state::{JobState, Transition, job as step};
use sea_orm::sea_query::{Expr, IntoIden, Query, SimpleExpr, TableRef};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, ExprTrait,
    PaginatorTrait, QueryFilter, QueryTrait, TransactionTrait, UpdateMany,
};
use time::OffsetDateTime;
use uuid::Uuid;

use tracing::Instrument;

use super::dialect::Dialect;
use super::{QueryExt, Store, StoreError, asset, attempt, job};

/// The right to write to a job, until another worker claims it or it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The job.
    pub job_id: Uuid,
    /// The fencing token: the number of the claim, from 1.
    pub token: i64,
}

impl Store {
    /// Renews a lease: it now expires `duration` from now.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] if another worker has claimed the job, the job was released, or it has ended;
    /// [`StoreError::Database`] if this is not known.
    pub async fn renew(&self, lease: Lease, duration: Duration) -> Result<(), StoreError> {
        async {
            let renewed = job::Entity::update_many()
                .col_expr(job::Column::LeaseUntilMs, lease_expiry(self.db.get_database_backend(), duration))
                .filter(is_held(lease))
                .exec(&self.db)
                .with_timeout("renew a lease")
                .await?;
            require_lease(renewed.rows_affected)
        }
        .instrument(self.operation_span("renew", "jobs"))
        .await
    }

    /// Releases a job for the next worker. `count_attempt` adds one to its number of ended attempts.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written, and the lease expires by itself.
    pub async fn release(&self, lease: Lease, count_attempt: bool) -> Result<(), StoreError> {
        async {
            let doing = "release a job";
            let transaction = self.db.begin().with_timeout(doing).await?;
            let released = job::Entity::update_many()
                .col_expr(job::Column::Status, Expr::value(step::RELEASE.to.as_str()))
                .col_expr(job::Column::LeaseUntilMs, Expr::value(0_i64))
                .col_expr(job::Column::LeaseLosses, Expr::value(0))
                .col_expr(job::Column::Attempts, Expr::col(job::Column::Attempts).add(i32::from(count_attempt)))
                .col_expr(job::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()))
                .filter(job::Column::Id.eq(lease.job_id))
                .filter(job::Column::LeaseToken.eq(lease.token))
                .filter(precondition(step::RELEASE))
                .exec(&transaction)
                .with_timeout(doing)
                .await?;
            if released.rows_affected == 0 {
                transaction.rollback().with_timeout(doing).await?;
                return Err(StoreError::LeaseLost);
            }
            attempt::record_release(&transaction, lease, count_attempt).with_timeout(doing).await?;
            transaction.commit().with_timeout(doing).await
        }
        .instrument(self.operation_span("release", "jobs"))
        .await
    }

    /// Checks that a lease is held.
    ///
    /// # Errors
    ///
    /// As [`Store::renew`].
    pub(super) async fn check_lease(&self, lease: Lease, doing: &'static str) -> Result<(), StoreError> {
        let held = job::Entity::find().filter(is_held(lease)).count(&self.db);
        require_lease(held.with_timeout(doing).await?)
    }

    /// Clears the number of lost leases: a completed image shows that the job does not crash every worker.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn clear_lease_losses(&self, lease: Lease) -> Result<(), StoreError> {
        async {
            let cleared = job::Entity::update_many()
                .col_expr(job::Column::LeaseLosses, Expr::value(0))
                .filter(is_held(lease))
                .exec(&self.db)
                .with_timeout("clear the lost leases of a job")
                .await?;
            require_lease(cleared.rows_affected)
        }
        .instrument(self.operation_span("clear_losses", "jobs"))
        .await
    }

    /// Begins a transaction of the lease holder.
    ///
    /// It locks the job's row, so that no other worker can claim the job before the transaction ends.
    pub(super) async fn begin_with_lease(
        &self,
        lease: Lease,
        doing: &'static str,
    ) -> Result<DatabaseTransaction, StoreError> {
        self.begin_and_update_job(lease, doing, None, None).await
    }

    /// Begins a transaction of the lease holder as [`Self::begin_with_lease`] does, and sets a column of the job. If the
    /// job does not satisfy `condition`, the lease counts as lost.
    pub(super) async fn begin_and_update_job(
        &self,
        lease: Lease,
        doing: &'static str,
        change: Option<(job::Column, SimpleExpr)>,
        condition: Option<SimpleExpr>,
    ) -> Result<DatabaseTransaction, StoreError> {
        let transaction = self.db.begin().with_timeout(doing).await?;
        let update =
            job::Entity::update_many().col_expr(job::Column::UpdatedAt, Expr::value(OffsetDateTime::now_utc()));
        let update = match change {
            Some((column, value)) => update.col_expr(column, value),
            None => update,
        };
        let locked = update
            .filter(is_held(lease))
            .filter(Condition::all().add_option(condition))
            .exec(&transaction)
            .with_timeout(doing)
            .await?;
        if locked.rows_affected == 0 {
            transaction.rollback().with_timeout(doing).await?;
            return Err(StoreError::LeaseLost);
        }
        Ok(transaction)
    }
}

/// [`StoreError::LeaseLost`] if a statement of the lease holder affected no row.
pub(super) fn require_lease(rows: u64) -> Result<(), StoreError> {
    if rows == 0 { Err(StoreError::LeaseLost) } else { Ok(()) }
}

/// SQL condition: the row is that of the job, and the lease is held.
fn is_held(lease: Lease) -> Condition {
    Condition::all()
        .add(job::Column::Id.eq(lease.job_id))
        .add(job::Column::LeaseToken.eq(lease.token))
        .add(precondition(step::RENEW))
}

/// Lets an update of images affect no row unless the lease is held. Its statement locks the job's row against claims, so
/// that it needs no transaction around it.
pub(super) fn only_with_lease(mut update: UpdateMany<asset::Entity>, lease: Lease) -> UpdateMany<asset::Entity> {
    let mut held = Query::select();
    held.expr_as(Expr::value(1), "is_held").from(job::Entity).cond_where(is_held(lease)).lock_shared();
    QueryTrait::query(&mut update).from(TableRef::SubQuery(Box::new(held), "lease".into_iden()));
    update
}

/// SQL condition: the job is in a state from which the transition is allowed.
pub(super) fn precondition(step: Transition<JobState>) -> SimpleExpr {
    job::Column::Status.is_in(step.from.iter().map(|state| state.as_str()))
}

/// Acquires the lease of a job that is waiting or whose lease has expired, and returns the job's row; otherwise `None`.
pub(super) async fn acquire_lease(
    db: &impl ConnectionTrait,
    job_id: Uuid,
    length: Duration,
) -> Result<Option<job::Model>, DbErr> {
    let backend = db.get_database_backend();
    // A waiting job is claimed. A running job is taken over if its lease has expired, which counts as a lost lease.
    let expired = precondition(step::TAKE_OVER).and(Expr::col(job::Column::LeaseUntilMs).lt(now_ms(backend)));
    let losses = Expr::case(precondition(step::TAKE_OVER), Expr::col(job::Column::LeaseLosses).add(1))
        .finally(Expr::col(job::Column::LeaseLosses));
    let updated = job::Entity::update_many()
        .col_expr(job::Column::LeaseLosses, losses.into())
        .col_expr(job::Column::Status, Expr::value(step::CLAIM.to.as_str()))
        .col_expr(job::Column::LeaseToken, Expr::col(job::Column::LeaseToken).add(1_i64))
        .col_expr(job::Column::LeaseUntilMs, lease_expiry(backend, length))
        .filter(job::Column::Id.eq(job_id))
        .filter(precondition(step::CLAIM).or(expired))
        .exec(db)
        .await?;
    if updated.rows_affected == 0 {
        return Ok(None);
    }
    job::Entity::find_by_id(job_id).one(db).await
}

/// Creates the first lease of a job whose row this transaction has inserted.
pub(super) async fn create_lease(db: &impl ConnectionTrait, job_id: Uuid, length: Duration) -> Result<Lease, DbErr> {
    let token = 1;
    job::Entity::update_many()
        .col_expr(job::Column::LeaseToken, Expr::value(token))
        .col_expr(job::Column::LeaseUntilMs, lease_expiry(db.get_database_backend(), length))
        .filter(job::Column::Id.eq(job_id))
        .exec(db)
        .await?;
    Ok(Lease { job_id, token })
}

fn lease_expiry(backend: DbBackend, length: Duration) -> SimpleExpr {
    now_ms(backend).add(i64::try_from(length.as_millis()).unwrap_or(i64::MAX))
}

/// Milliseconds since 1970 by the database's clock at the time of the statement.
pub(super) fn now_ms(backend: DbBackend) -> SimpleExpr {
    Expr::cust(format!("({}) / 1000", Dialect::for_backend(backend).clock_us))
}
