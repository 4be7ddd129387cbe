//! The claims of jobs: which worker tried a job when.

use sea_orm::ActiveValue::Set;
use sea_orm::QueryOrder;
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::{Expr, OnConflict};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Lease;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "attempts")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    job_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    token: i64,
    worker: String,
    started_at: TimeDateTimeWithTimeZone,
    released_at: Option<TimeDateTimeWithTimeZone>,
    counted: Option<bool>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// A claim of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Host name of the worker.
    pub worker: String,
    /// When the worker claimed the job.
    pub started_at: OffsetDateTime,
    /// When it released the job before its end; `None` if the job ended, runs, or its lease expired.
    pub released_at: Option<OffsetDateTime>,
    /// Whether the released attempt counts as failed: otherwise the job was handed to another worker.
    pub is_counted: bool,
}

/// Records a claim.
pub(super) async fn insert(db: &impl ConnectionTrait, lease: Lease, worker: &str) -> Result<(), DbErr> {
    let row = ActiveModel {
        job_id: Set(lease.job_id),
        token: Set(lease.token),
        worker: Set(worker.to_owned()),
        started_at: Set(OffsetDateTime::now_utc()),
        released_at: Set(None),
        counted: Set(None),
    };
    // A worker of an earlier version may have purged an earlier job of this id without its claims.
    let replace = OnConflict::columns([Column::JobId, Column::Token])
        .update_columns([Column::Worker, Column::StartedAt, Column::ReleasedAt, Column::Counted])
        .to_owned();
    Entity::insert(row).on_conflict(replace).exec_without_returning(db).await.map(drop)
}

/// Records that the holder of a lease has released its job.
pub(super) async fn record_release(db: &impl ConnectionTrait, lease: Lease, is_counted: bool) -> Result<(), DbErr> {
    Entity::update_many()
        .col_expr(Column::ReleasedAt, Expr::value(OffsetDateTime::now_utc()))
        .col_expr(Column::Counted, Expr::value(is_counted))
        .filter(Column::JobId.eq(lease.job_id))
        .filter(Column::Token.eq(lease.token))
        .exec(db)
        .await
        .map(drop)
}

/// The claims of a job, oldest first.
pub(super) async fn read(db: &impl ConnectionTrait, job_id: Uuid) -> Result<Vec<Attempt>, DbErr> {
    let rows = Entity::find().filter(Column::JobId.eq(job_id)).order_by_asc(Column::Token).all(db).await?;
    let attempt = |row: Model| Attempt {
        worker: row.worker,
        started_at: row.started_at,
        released_at: row.released_at,
        is_counted: row.counted.unwrap_or(false),
    };
    Ok(rows.into_iter().map(attempt).collect())
}

/// Deletes the claims of jobs that are purged.
pub(super) async fn delete(db: &impl ConnectionTrait, job_ids: &[Uuid]) -> Result<(), DbErr> {
    Entity::delete_many().filter(Column::JobId.is_in(job_ids.iter().copied())).exec(db).await.map(drop)
}
