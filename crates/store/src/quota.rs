//! The account's quota for requests: one row that paces all workers together, by the database's clock.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbErr, QueryResult, Statement, Value};

use tracing::Instrument;

use super::dialect::Dialect;
use super::{QueryExt, Store, StoreError};

/// The request rate of all workers together, for the generic cell rate algorithm (GCRA).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Interval between two requests.
    pub interval: Duration,
    /// GCRA tolerance: how much sooner than that a request may be sent after a time without requests.
    pub tolerance: Duration,
}

impl Store {
    /// Reserves the next request slot of all workers and returns the wait until it may be used. One statement.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; either no slot was reserved, or one is reserved and stays unused.
    pub async fn reserve_request_slot(&self, pace: Pace) -> Result<Duration, StoreError> {
        async {
            let Dialect { clock_us, greatest, .. } = Dialect::for_backend(self.db.get_database_backend());
            let sql = format!(
                "WITH clock AS (SELECT {clock_us} AS now_us) UPDATE quotas \
             SET slot_us = {greatest}(due_us - $1, paused_until_us, clock.now_us), \
             due_us = {greatest}(due_us, paused_until_us, clock.now_us) + $2 \
             FROM clock WHERE name = 'stability' RETURNING slot_us - {clock_us} AS wait_us"
            );
            self.query_wait(&sql, [to_micros(pace.tolerance), to_micros(pace.interval)])
                .with_timeout("reserve a request slot")
                .await
        }
        .instrument(self.operation_span("reserve", "quotas"))
        .await
    }

    /// Pauses the requests of all workers for `length` (rate-limit pause). A pause that ends later is kept.
    ///
    /// After it, requests follow at the usual interval, without a burst.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the pause may not be recorded, and other workers may continue to send.
    pub async fn pause_requests(&self, length: Duration, pace: Pace) -> Result<(), StoreError> {
        async {
            let Dialect { clock_us, greatest, .. } = Dialect::for_backend(self.db.get_database_backend());
            let sql = format!(
                "WITH clock AS (SELECT {clock_us} AS now_us) UPDATE quotas \
             SET paused_until_us = {greatest}(paused_until_us, clock.now_us + $1), \
             due_us = {greatest}(due_us, clock.now_us + $1 + $2) \
             FROM clock WHERE name = 'stability' RETURNING $1 AS wait_us"
            );
            self.query_wait(&sql, [to_micros(length), to_micros(pace.tolerance)])
                .with_timeout("pause requests")
                .await
                .map(drop)
        }
        .instrument(self.operation_span("pause", "quotas"))
        .await
    }

    /// The remaining time of the rate-limit pause; zero if there is none.
    pub async fn read_remaining_pause(&self) -> Result<Duration, StoreError> {
        async {
            let Dialect { clock_us, .. } = Dialect::for_backend(self.db.get_database_backend());
            let sql = format!("SELECT paused_until_us - {clock_us} AS wait_us FROM quotas WHERE name = 'stability'");
            self.query_wait(&sql, []).with_timeout("read the quota").await
        }
        .instrument(self.operation_span("find", "quotas"))
        .await
    }

    async fn query_wait<const N: usize>(&self, sql: &str, values: [i64; N]) -> Result<Duration, DbErr> {
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values.map(Value::from));
        let row: Option<QueryResult> = self.db.query_one_raw(statement).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("quota row".to_owned()))?;
        let wait: i64 = row.try_get("", "wait_us")?;
        Ok(Duration::from_micros(u64::try_from(wait).unwrap_or_default()))
    }
}

fn to_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}
