//! What jobs have cost, by day, project or engine. The costs of purged jobs are kept as sums.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult, Statement, Value};
use time::{Date, OffsetDateTime};
use tracing::Instrument;

use super::dialect::Dialect;
use super::{QueryExt, Store, StoreError};

/// What costs are summed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CostKey {
    /// The project.
    Project,
    /// The UTC day. Requests and money count on the day on which they were sent, all else on the day of the job's first
    /// claim.
    Day,
    /// The engine; empty for jobs that no worker has claimed.
    Engine,
}

/// The costs of one project, day or engine.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct CostSum {
    /// The project's id, the day such as `2026-11-24`, or the engine's name.
    pub key: String,
    /// Number of jobs.
    pub jobs: i64,
    /// Number of requests that were sent.
    pub requests: i64,
    /// Number of completed images.
    pub images: i64,
    /// Those of them that were copied from the cache.
    pub cached: i64,
    /// Requests beyond the first for an image, and beyond the first for its upscale.
    pub retries: i64,
    /// Millionths of a US dollar.
    pub micro_usd: i64,
}

/// The sums of a table or subquery with the columns of `purged_costs`.
const SUMS: &str = "CAST(sum(jobs) AS BIGINT) AS jobs, CAST(sum(requests) AS BIGINT) AS requests, \
    CAST(sum(images) AS BIGINT) AS images, CAST(sum(cached) AS BIGINT) AS cached, \
    CAST(sum(retries) AS BIGINT) AS retries, CAST(sum(micro_usd) AS BIGINT) AS micro_usd";

impl Store {
    /// The costs since 00:00 UTC of a day, dearest first; those of days by day.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_costs(&self, key: CostKey, since: Date) -> Result<Vec<CostSum>, StoreError> {
        let backend = self.db.get_database_backend();
        let day = Dialect::for_backend(backend).created_day;
        // The first condition can use an index. On SQLite, it compares texts.
        let condition = format!("jobs.created_at >= $1 AND {day} >= $2 AND jobs.status NOT IN ('purged', 'cancelled')");
        let assets = format!("job_id IN (SELECT id FROM jobs WHERE {condition})");
        let jobs = job_sums(backend, &condition, &assets);
        let all = format!("({jobs} UNION ALL SELECT * FROM purged_costs WHERE day >= $2) sums");
        let sql = match key {
            CostKey::Project | CostKey::Engine => {
                let column = if key == CostKey::Project { "project_id" } else { "engine" };
                format!(
                    "SELECT CAST({column} AS TEXT) AS key, {SUMS} FROM {all} GROUP BY {column} ORDER BY micro_usd DESC, 1"
                )
            }
            CostKey::Day => format!(
                "SELECT key, {SUMS} FROM (SELECT day AS key, jobs, 0 AS requests, images, cached, retries, 0 AS micro_usd \
                 FROM {all} UNION ALL SELECT day, 0, requests, 0, 0, 0, micro_usd FROM spending WHERE day >= $2) days \
                 GROUP BY key ORDER BY key"
            ),
        };
        let day_before = OffsetDateTime::new_utc(since, time::Time::MIDNIGHT) - time::Duration::DAY;
        let values: [Value; 2] = [day_before.into(), since.to_string().into()];
        let rows = CostSum::find_by_statement(Statement::from_sql_and_values(backend, sql, values)).all(&self.db);
        rows.with_timeout("read costs").instrument(self.operation_span("find", "jobs")).await
    }
}

/// A query for the sums of jobs by day, project and engine, with the columns of `purged_costs`. The conditions select jobs,
/// and may limit the assets that are read.
fn job_sums(backend: DbBackend, jobs: &str, assets: &str) -> String {
    let day = Dialect::for_backend(backend).created_day;
    // A completed image that the upscaler was asked for needs two requests.
    let needed = "CASE WHEN status = 'completed' AND \
        (metadata ->> 'upscaler' = 'fast' OR metadata ->> 'requested_upscaler' = 'fast') THEN 2 ELSE 1 END";
    let completed = "CASE WHEN status = 'completed' THEN 1 ELSE 0 END";
    let cached = "CASE WHEN status = 'completed' AND metadata ->> 'origin' = 'cache' THEN 1 ELSE 0 END";
    let retries = format!("CASE WHEN requests > {needed} THEN requests - {needed} ELSE 0 END");
    format!(
        "SELECT {day} AS day, jobs.project_id AS project_id, COALESCE(jobs.engine, '') AS engine, \
         CAST(count(*) AS BIGINT) AS jobs, CAST(COALESCE(sum(made.requests), 0) AS BIGINT) AS requests, \
         CAST(COALESCE(sum(made.images), 0) AS BIGINT) AS images, CAST(COALESCE(sum(made.cached), 0) AS BIGINT) AS cached, \
         CAST(COALESCE(sum(made.retries), 0) AS BIGINT) AS retries, \
         CAST(sum(CAST(round(jobs.cost_usd * 1000000) AS BIGINT)) AS BIGINT) AS micro_usd \
         FROM jobs LEFT JOIN (SELECT job_id, sum(requests) AS requests, sum({completed}) AS images, \
         sum({cached}) AS cached, sum({retries}) AS retries FROM assets WHERE {assets} GROUP BY job_id) made \
         ON made.job_id = jobs.id WHERE {jobs} GROUP BY 1, 2, 3"
    )
}

/// Adds the costs of jobs that were purged in this transaction, before their images are deleted.
pub(super) async fn keep_costs(db: &impl ConnectionTrait, ids: &[uuid::Uuid]) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    let list = (1..=ids.len()).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ");
    let jobs = format!("jobs.id IN ({list}) AND jobs.status = 'purged'");
    let sums = job_sums(backend, &jobs, &format!("job_id IN ({list})"));
    let columns = ["jobs", "requests", "images", "cached", "retries", "micro_usd"];
    let added = columns.map(|column| format!("{column} = purged_costs.{column} + excluded.{column}")).join(", ");
    // "WHERE true" tells SQLite that ON is not that of a join.
    let sql = format!(
        "INSERT INTO purged_costs (day, project_id, engine, jobs, requests, images, cached, retries, micro_usd) \
         SELECT * FROM ({sums}) sums WHERE true ON CONFLICT (day, project_id, engine) DO UPDATE SET {added}"
    );
    let values = ids.iter().map(|id| Value::from(*id));
    db.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await.map(drop)
}
