//! Retention: removes ended jobs and their images, in small transactions beside working workers.
//!
//! The id, the digest and the kind of end of a purged job are kept for a while, so that its command, delivered late, has no
//! effect. A job is purged only after a queue has received its terminal event and all messages before it.

use std::collections::HashMap;
use std::time::Duration;

use domain::state::job as step;
use sea_orm::sea_query::{Expr, Query, SimpleExpr};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, ExprTrait, FromQueryResult, PaginatorTrait, QueryFilter,
    QueryOrder, QuerySelect, Statement, TransactionTrait,
};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::costs::keep_costs;
use super::dialect::Dialect;
use super::lease::precondition;
use super::{QueryExt, Store, StoreError, asset, attempt, job, outbox, translation};

/// How long the id of a purged job is kept, in days.
const KEPT_DAYS: i64 = 30;
/// Name of the turn in the table `sweeps`.
const TURN: &str = "purge";

/// Which jobs to purge.
#[derive(Debug, Clone, Copy)]
pub struct PurgeFilter {
    /// Jobs that ended before.
    pub ended_before: OffsetDateTime,
    /// Only those of this project.
    pub project_id: Option<i64>,
}

/// What a purge removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PurgeCount {
    /// Number of jobs.
    pub jobs: u64,
    /// Number of their images: completed and failed ones.
    pub images: u64,
    /// Number of files that the images have.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
}

impl PurgeCount {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            jobs: self.jobs + other.jobs,
            images: self.images + other.images,
            files: self.files + other.files,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// A job that may be purged.
#[derive(Debug)]
pub struct PurgeableJob {
    /// Its id.
    pub job_id: Uuid,
    /// When it ended.
    pub finished_at: OffsetDateTime,
    /// Number of its images.
    pub images: u64,
    /// The files of its images: path and size in bytes.
    pub files: Vec<(String, u64)>,
}

#[derive(FromQueryResult)]
struct ImageCount {
    images: i64,
    files: i64,
    bytes: i64,
}

impl Store {
    /// Takes the turn to purge for `duration`, or prolongs it. Returns whether this caller, named by `holder`, has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the turn was not taken.
    pub async fn take_purge_turn(&self, holder: Uuid, duration: Duration) -> Result<bool, StoreError> {
        self.take_turn(TURN, holder, duration).await
    }

    /// Ends the turn to purge, if this caller has it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the turn ends by itself.
    pub async fn end_purge_turn(&self, holder: Uuid) -> Result<(), StoreError> {
        self.take_turn(TURN, holder, Duration::ZERO).await.map(drop)
    }

    /// Counts the jobs that a purge would remove.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be counted.
    pub async fn count_purgeable_jobs(&self, filter: PurgeFilter) -> Result<u64, StoreError> {
        PaginatorTrait::count(job::Entity::find().filter(purgeable(filter)), &self.db)
            .with_timeout("count jobs to purge")
            .await
    }

    /// Counts what a purge would remove.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn count_purgeable(&self, filter: PurgeFilter) -> Result<PurgeCount, StoreError> {
        let doing = "count images to purge";
        let jobs = self.count_purgeable_jobs(filter).await?;
        let ids = Query::select().column(job::Column::Id).from(job::Entity).cond_where(purgeable(filter)).to_owned();
        let count = asset::Entity::find()
            .select_only()
            .expr_as(Expr::cust("count(*)"), "images")
            .expr_as(Expr::cust("count(file_path)"), "files")
            .expr_as(
                Expr::cust("CAST(COALESCE(sum(CASE WHEN file_path IS NOT NULL THEN size_bytes END), 0) AS BIGINT)"),
                "bytes",
            )
            .filter(asset::Column::JobId.in_subquery(ids))
            .into_model::<ImageCount>()
            .one(&self.db)
            .with_timeout(doing)
            .await?;
        let count = count.unwrap_or(ImageCount { images: 0, files: 0, bytes: 0 });
        let number = |value: i64| u64::try_from(value).unwrap_or_default();
        Ok(PurgeCount { jobs, images: number(count.images), files: number(count.files), bytes: number(count.bytes) })
    }

    /// The jobs that ended first among those to purge that ended after the job `after`, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_purgeable_jobs(
        &self,
        filter: PurgeFilter,
        after: Option<&PurgeableJob>,
        limit: u64,
    ) -> Result<Vec<PurgeableJob>, StoreError> {
        async {
            let doing = "find jobs to purge";
            let (finished_at, id) = (job::Column::FinishedAt, job::Column::Id);
            let after = after.map(|last| {
                let same_time = finished_at.eq(last.finished_at).and(id.gt(last.job_id));
                // The first condition lets an index skip the jobs before.
                finished_at.gte(last.finished_at).and(finished_at.gt(last.finished_at).or(same_time))
            });
            let found: Vec<(Uuid, OffsetDateTime)> = job::Entity::find()
                .select_only()
                .columns([id, finished_at])
                .filter(purgeable(filter).add_option(after))
                .order_by_asc(finished_at)
                .order_by_asc(id)
                .limit(limit)
                .into_tuple()
                .all(&self.db)
                .with_timeout(doing)
                .await?;
            let images: Vec<(Uuid, Option<String>, Option<i64>)> = asset::Entity::find()
                .select_only()
                .columns([asset::Column::JobId, asset::Column::FilePath, asset::Column::SizeBytes])
                .filter(asset::Column::JobId.is_in(found.iter().map(|(job_id, _)| *job_id)))
                .into_tuple()
                .all(&self.db)
                .with_timeout(doing)
                .await?;
            let new_job = |(job_id, finished_at)| PurgeableJob { job_id, finished_at, images: 0, files: Vec::new() };
            let mut jobs: Vec<PurgeableJob> = found.into_iter().map(new_job).collect();
            let positions: HashMap<Uuid, usize> =
                jobs.iter().enumerate().map(|(position, job)| (job.job_id, position)).collect();
            for (job_id, path, bytes) in images {
                let Some(job) = positions.get(&job_id).and_then(|position| jobs.get_mut(*position)) else {
                    continue;
                };
                job.images += 1;
                // A file may also have been written for an image that failed because it could not be stored.
                if let Some(path) = path {
                    job.files.push((path, bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or_default()));
                }
            }
            Ok(jobs)
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// Purges jobs, in one transaction: deletes their images, and keeps of each the id, the digest and the kind of its end.
    /// Their costs are added to the kept sums. Returns the jobs that were purged: not those that are purged already.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn purge_jobs(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        async {
            let doing = "purge jobs";
            let now = OffsetDateTime::now_utc();
            let transaction = self.db.begin().with_timeout(doing).await?;
            let text = || Expr::value(Option::<String>::None);
            let json = || Expr::value(Option::<serde_json::Value>::None);
            let purged = job::Entity::update_many()
                .col_expr(job::Column::Status, Expr::value(step::PURGE.to.as_str()))
                .col_expr(job::Column::PurgedAt, Expr::value(now))
                .col_expr(job::Column::UpdatedAt, Expr::value(now))
                .col_expr(job::Column::Command, json())
                .col_expr(job::Column::Style, json())
                .col_expr(job::Column::Reply, json())
                .col_expr(job::Column::ErrorMessage, text())
                .col_expr(job::Column::TraceParent, text())
                .col_expr(job::Column::TerminalEvent, text())
                .col_expr(job::Column::CancelReason, text())
                .filter(job::Column::Id.is_in(ids.iter().copied()))
                .filter(is_published())
                .exec_with_returning(&transaction)
                .with_timeout(doing)
                .await?;
            let purged: Vec<Uuid> = purged.into_iter().map(|row| row.id).collect();
            if !purged.is_empty() {
                keep_costs(&transaction, &purged).with_timeout(doing).await?;
                asset::Entity::delete_many()
                    .filter(asset::Column::JobId.is_in(purged.iter().copied()))
                    .exec(&transaction)
                    .with_timeout(doing)
                    .await?;
                attempt::delete(&transaction, &purged).with_timeout(doing).await?;
            }
            transaction.commit().with_timeout(doing).await?;
            Ok(purged)
        }
        .instrument(self.operation_span("purge", "jobs"))
        .await
    }

    /// Removes what is kept of jobs that were purged 30 days ago, at most `limit`. Returns their number. A job that made
    /// images of another one again is kept as long as that one, so that no later job gets its id.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn forget_purged_jobs(&self, limit: u64) -> Result<u64, StoreError> {
        let is_first_known = "EXISTS (SELECT 1 FROM jobs first WHERE first.id = jobs.retry_of)";
        let old = Query::select()
            .column(job::Column::Id)
            .from(job::Entity)
            .and_where(job::Column::PurgedAt.lt(OffsetDateTime::now_utc() - time::Duration::days(KEPT_DAYS)))
            .and_where(Expr::cust(is_first_known).not())
            .limit(limit)
            .to_owned();
        async {
            let doing = "forget purged jobs";
            let transaction = self.db.begin().with_timeout(doing).await?;
            let ids: Vec<Uuid> = job::Entity::delete_many()
                .filter(job::Column::Id.in_subquery(old))
                .exec_with_returning(&transaction)
                .with_timeout(doing)
                .await?
                .into_iter()
                .map(|row| row.id)
                .collect();
            // A worker of an earlier version has purged jobs without their claims.
            attempt::delete(&transaction, &ids).with_timeout(doing).await?;
            transaction.commit().with_timeout(doing).await?;
            Ok(ids.len() as u64)
        }
        .instrument(self.operation_span("delete", "jobs"))
        .await
    }

    /// Number of translations that no job has used since then.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn count_unused_translations(&self, since: OffsetDateTime) -> Result<u64, StoreError> {
        let unused = translation::Entity::find().filter(unused_since(since));
        PaginatorTrait::count(unused, &self.db).with_timeout("count unused translations").await
    }

    /// Deletes translations that no job has used since then, at most `limit`. Returns their number.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn delete_unused_translations(&self, since: OffsetDateTime, limit: u64) -> Result<u64, StoreError> {
        let unused = Query::select()
            .column(translation::Column::Digest)
            .from(translation::Entity)
            .and_where(unused_since(since))
            .limit(limit)
            .to_owned();
        let deleted = translation::Entity::delete_many().filter(translation::Column::Digest.in_subquery(unused));
        deleted.exec(&self.db).with_timeout("delete unused translations").await.map(|result| result.rows_affected)
    }

    /// Takes a turn by its name for `duration`, or prolongs it. Returns whether `holder` has it.
    pub(super) async fn take_turn(
        &self,
        name: &'static str,
        holder: Uuid,
        duration: Duration,
    ) -> Result<bool, StoreError> {
        let backend = self.db.get_database_backend();
        let now = format!("({}) / 1000", Dialect::for_backend(backend).clock_us);
        let sql = format!(
            "INSERT INTO sweeps (name, holder, until_ms) VALUES ($1, $2, {now} + $3) \
             ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms \
             WHERE sweeps.holder = excluded.holder OR sweeps.until_ms < {now} RETURNING name"
        );
        let length = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let statement = Statement::from_sql_and_values(backend, sql, [name.into(), holder.into(), length.into()]);
        Ok(self.db.query_one_raw(statement).with_timeout("take a turn").await?.is_some())
    }
}

fn unused_since(since: OffsetDateTime) -> SimpleExpr {
    let used_at = Expr::cust("COALESCE(used_at, created_at)");
    used_at.lt(since)
}

/// SQL condition: the job is to be purged.
fn purgeable(filter: PurgeFilter) -> Condition {
    let of_project = filter.project_id.map(|project_id| job::Column::ProjectId.eq(project_id));
    Condition::all().add(job::Column::FinishedAt.lt(filter.ended_before)).add(is_published()).add_option(of_project)
}

/// SQL condition: the job has ended, and queues have received its terminal event and all messages before it.
fn is_published() -> Condition {
    let with_messages = Query::select().column(outbox::Column::JobId).from(outbox::Entity).to_owned();
    Condition::all()
        .add(precondition(step::PURGE))
        .add(job::Column::TerminalEvent.is_not_null())
        .add(job::Column::PublishedAt.is_not_null())
        .add(job::Column::PublishDueAt.is_null())
        .add(job::Column::Id.not_in_subquery(with_messages))
}
