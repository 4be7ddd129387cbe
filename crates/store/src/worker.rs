//! The running workers, each with its last heartbeat by the database's clock.

use std::time::Duration;

use sea_orm::{ConnectionTrait, FromQueryResult, Statement};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::account_key::time_from_ms;
use super::dialect::Dialect;
use super::{QueryExt, Store, StoreError};

/// A worker without a heartbeat for this long is not counted as running.
const ALIVE_MS: i64 = 45_000;
/// Rows of workers that were killed are deleted after this time.
const KEPT_MS: i64 = 24 * 60 * 60 * 1_000;

/// A worker that has sent a heartbeat within the last day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerReport {
    /// Host name.
    pub host: String,
    /// Version of the program.
    pub version: String,
    /// When the process started, by its own clock.
    pub started_at: OffsetDateTime,
    /// Its last heartbeat.
    pub seen_at: OffsetDateTime,
    /// Whether that was less than 45 seconds ago.
    pub is_alive: bool,
    /// Jobs in flight at that time.
    pub jobs: u32,
}

/// What a worker tells about itself.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat<'a> {
    /// The id of its process.
    pub id: Uuid,
    /// Host name.
    pub host: &'a str,
    /// Version of the program.
    pub version: &'a str,
    /// When the process started.
    pub started_at: OffsetDateTime,
    /// Jobs in flight.
    pub jobs: usize,
}

#[derive(FromQueryResult)]
struct Row {
    host: String,
    version: String,
    started_at: OffsetDateTime,
    seen_at_ms: i64,
    age_ms: i64,
    jobs: i32,
}

impl Store {
    /// Records a heartbeat of this worker, and forgets workers that have sent none for a day.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn record_heartbeat(&self, heartbeat: Heartbeat<'_>) -> Result<(), StoreError> {
        let Heartbeat { id, host, version, started_at, jobs } = heartbeat;
        let backend = self.db.get_database_backend();
        let now_ms = format!("({}) / 1000", Dialect::for_backend(backend).clock_us);
        async {
            let doing = "record a heartbeat";
            let sql = format!(
                "INSERT INTO workers (id, host, version, started_at, seen_at_ms, jobs) VALUES ($1, $2, $3, $4, {now_ms}, $5) \
                 ON CONFLICT (id) DO UPDATE SET seen_at_ms = excluded.seen_at_ms, jobs = excluded.jobs"
            );
            let jobs = i32::try_from(jobs).unwrap_or(i32::MAX);
            let values = [id.into(), host.into(), version.into(), started_at.into(), jobs.into()];
            let statement = Statement::from_sql_and_values(backend, sql, values);
            self.db.execute_raw(statement).with_timeout(doing).await?;
            let sql = format!("DELETE FROM workers WHERE seen_at_ms < {now_ms} - {KEPT_MS}");
            self.db.execute_unprepared(&sql).with_timeout(doing).await.map(drop)
        }
        .instrument(self.operation_span("upsert", "workers"))
        .await
    }

    /// Removes this worker, which stops.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it then counts as running until its last heartbeat is 45 seconds old.
    pub async fn remove_worker(&self, id: Uuid) -> Result<(), StoreError> {
        let statement = Statement::from_sql_and_values(
            self.db.get_database_backend(),
            "DELETE FROM workers WHERE id = $1",
            [id.into()],
        );
        let removing = self.db.execute_raw(statement).with_timeout("remove a worker");
        removing.instrument(self.operation_span("delete", "workers")).await.map(drop)
    }

    /// The workers that have sent a heartbeat within the last day, those that run first, by host name; at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_workers(&self, limit: u64) -> Result<Vec<WorkerReport>, StoreError> {
        async {
            let backend = self.db.get_database_backend();
            let now_ms = format!("({}) / 1000", Dialect::for_backend(backend).clock_us);
            let sql = format!(
                "SELECT host, version, started_at, seen_at_ms, {now_ms} - seen_at_ms AS age_ms, jobs FROM workers \
                 WHERE seen_at_ms >= {now_ms} - {KEPT_MS} \
                 ORDER BY CASE WHEN seen_at_ms >= {now_ms} - {ALIVE_MS} THEN 0 ELSE 1 END, host, started_at LIMIT {limit}"
            );
            let rows = Row::find_by_statement(Statement::from_string(backend, sql)).all(&self.db);
            let rows = rows.with_timeout("list the workers").await?;
            let report = |row: Row| {
                Some(WorkerReport {
                    host: row.host,
                    version: row.version,
                    started_at: row.started_at,
                    seen_at: time_from_ms(row.seen_at_ms).ok()?,
                    is_alive: row.age_ms < ALIVE_MS,
                    jobs: u32::try_from(row.jobs).unwrap_or_default(),
                })
            };
            Ok(rows.into_iter().filter_map(report).collect())
        }
        .instrument(self.operation_span("find", "workers"))
        .await
    }

    /// Number of jobs whose lease a worker holds.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be counted.
    pub async fn count_leases(&self) -> Result<u64, StoreError> {
        async {
            let backend = self.db.get_database_backend();
            let now_ms = format!("({}) / 1000", Dialect::for_backend(backend).clock_us);
            let sql =
                format!("SELECT count(*) AS leases FROM jobs WHERE status = 'running' AND lease_until_ms >= {now_ms}");
            async {
                let row = self.db.query_one_raw(Statement::from_string(backend, sql)).await?;
                row.map_or(Ok(0), |row| row.try_get::<i64>("", "leases"))
            }
            .with_timeout("count the leases")
            .await
            .map(|leases| u64::try_from(leases).unwrap_or_default())
        }
        .instrument(self.operation_span("count", "jobs"))
        .await
    }
}

/// How often a worker is expected to send a heartbeat.
pub const WORKER_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
