//! How many jobs and images ended when, and the requests and spending of days.

use sea_orm::{ConnectionTrait, FromQueryResult, Statement};
use time::{Date, OffsetDateTime};
use tracing::Instrument;

use super::dialect::Dialect;
use super::{QueryExt, Store, StoreError};

/// The jobs that ended in some time, with one result: completed, or failed with one code.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct EndedCount {
    /// The failure code; `None` for those that completed.
    pub code: Option<String>,
    /// Their number.
    pub count: i64,
}

/// What ended in some time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    /// Jobs that ended.
    pub jobs: Vec<EndedCount>,
    /// Images of these jobs.
    pub images: Vec<EndedCount>,
}

/// The requests and the spending of one UTC day.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct DaySpending {
    /// The day, such as `2026-11-24`.
    pub day: String,
    /// Requests that were sent.
    pub requests: i64,
    /// Millionths of a US dollar.
    pub micro_usd: i64,
}

/// The ended jobs of a time from $1 to $2, without purged ones. Each branch has the condition of an index.
const ENDED: &str = "(SELECT id, error_code FROM jobs WHERE terminal_event IS NOT NULL AND published_at IS NOT NULL \
     AND finished_at >= $1 AND finished_at < $2 \
     UNION ALL SELECT id, error_code FROM jobs WHERE terminal_event IS NOT NULL AND published_at IS NULL \
     AND finished_at >= $1 AND finished_at < $2) ended";

impl Store {
    /// Counts what ended from one time to another.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_activity(&self, from: OffsetDateTime, to: OffsetDateTime) -> Result<Activity, StoreError> {
        async {
            let backend = self.db.get_database_backend();
            let read = async |sql: String| {
                let statement = Statement::from_sql_and_values(backend, sql, [from.into(), to.into()]);
                EndedCount::find_by_statement(statement).all(&self.db).with_timeout("count ended jobs").await
            };
            let jobs =
                read(format!("SELECT error_code AS code, count(*) AS count FROM {ENDED} GROUP BY error_code")).await?;
            let images = read(format!(
                "SELECT CASE WHEN assets.status = 'completed' THEN NULL ELSE COALESCE(assets.error_code, 'not_attempted') END AS code, \
                 count(*) AS count FROM {ENDED} JOIN assets ON assets.job_id = ended.id GROUP BY 1"
            ))
            .await?;
            Ok(Activity { jobs, images })
        }
        .instrument(self.operation_span("count", "jobs"))
        .await
    }

    /// Number of jobs that wait for a worker and of those that run.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be counted.
    pub async fn count_open_jobs(&self) -> Result<(u64, u64), StoreError> {
        #[derive(FromQueryResult)]
        struct Row {
            status: String,
            count: i64,
        }
        let sql = "SELECT status, count(*) AS count FROM jobs WHERE status IN ('waiting', 'running') GROUP BY status";
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        let rows = Row::find_by_statement(statement).all(&self.db).with_timeout("count open jobs");
        let rows = rows.instrument(self.operation_span("count", "jobs")).await?;
        let count = |status: &str| {
            let row = rows.iter().find(|row| row.status == status);
            row.map_or(0, |row| u64::try_from(row.count).unwrap_or_default())
        };
        Ok((count("waiting"), count("running")))
    }

    /// The requests and the spending of each UTC day since this one, oldest first. Days without requests are left out.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_daily_spending(&self, since: Date) -> Result<Vec<DaySpending>, StoreError> {
        let sql = "SELECT day, requests, micro_usd FROM spending WHERE day >= $1 ORDER BY day";
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, [since.to_string().into()]);
        let reading = DaySpending::find_by_statement(statement).all(&self.db).with_timeout("read the spending");
        reading.instrument(self.operation_span("find", "spending")).await
    }

    /// The current UTC day by the database's clock, and the number of requests that all workers have sent on it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_requests_today(&self) -> Result<(String, i64), StoreError> {
        let backend = self.db.get_database_backend();
        let sql = format!(
            "SELECT today.day AS day, COALESCE(spending.requests, 0) AS requests \
             FROM (SELECT {} AS day) today LEFT JOIN spending ON spending.day = today.day",
            Dialect::for_backend(backend).today
        );
        async {
            let row = self.db.query_one_raw(Statement::from_string(backend, sql)).await?;
            row.map_or_else(
                || Ok(Default::default()),
                |row| Ok((row.try_get("", "day")?, row.try_get("", "requests")?)),
            )
        }
        .with_timeout("read the number of requests")
        .instrument(self.operation_span("find", "spending"))
        .await
    }
}
