//! The account's quota: one row that all workers pace themselves by, by the database's clock.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DbErr, QueryResult, Statement, Value};

use tracing::Instrument;

use super::dialect::Dialect;
use super::{Doing, Store, StoreError};

/// How fast requests may follow each other, for all workers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one request to the next.
    pub interval: Duration,
    /// How much sooner than that a request may be sent after a time without any: the generic cell rate algorithm's tolerance.
    pub tolerance: Duration,
}

impl Store {
    /// Reserves the next place in the row of all workers' requests, and says after which wait it may be used. One statement.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then none may have been reserved, or one is left unused.
    pub async fn reserve_request(&self, pace: Pace) -> Result<Duration, StoreError> {
        async {
            let Dialect { clock_us, greatest, .. } = Dialect::of(self.db.get_database_backend());
            let sql = format!(
                "WITH clock AS (SELECT {clock_us} AS now_us) UPDATE quotas \
             SET slot_us = {greatest}(due_us - $1, paused_until_us, clock.now_us), \
             due_us = {greatest}(due_us, paused_until_us, clock.now_us) + $2 \
             FROM clock WHERE name = 'stability' RETURNING slot_us - {clock_us} AS wait_us"
            );
            self.waits(&sql, [micros(pace.tolerance), micros(pace.interval)]).doing("reserve a request").await
        }
        .instrument(self.asked("reserve", "quotas"))
        .await
    }

    /// Lets nobody send before this time is over; a pause that ends later stays. After it requests follow each other as always, without a burst.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then the others do not know of it.
    pub async fn pause_requests(&self, length: Duration, pace: Pace) -> Result<(), StoreError> {
        async {
            let Dialect { clock_us, greatest, .. } = Dialect::of(self.db.get_database_backend());
            let sql = format!(
                "WITH clock AS (SELECT {clock_us} AS now_us) UPDATE quotas \
             SET paused_until_us = {greatest}(paused_until_us, clock.now_us + $1), \
             due_us = {greatest}(due_us, clock.now_us + $1 + $2) \
             FROM clock WHERE name = 'stability' RETURNING 0 AS wait_us"
            );
            self.waits(&sql, [micros(length), micros(pace.tolerance)]).doing("pause requests").await.map(drop)
        }
        .instrument(self.asked("pause", "quotas"))
        .await
    }

    /// How long nobody may send yet.
    pub async fn requests_paused_for(&self) -> Result<Duration, StoreError> {
        async {
            let Dialect { clock_us, .. } = Dialect::of(self.db.get_database_backend());
            let sql = format!("SELECT paused_until_us - {clock_us} AS wait_us FROM quotas WHERE name = 'stability'");
            self.waits(&sql, []).doing("look at the quota").await
        }
        .instrument(self.asked("find", "quotas"))
        .await
    }

    async fn waits<const N: usize>(&self, sql: &str, values: [i64; N]) -> Result<Duration, DbErr> {
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values.map(Value::from));
        let row: Option<QueryResult> = self.db.query_one_raw(statement).await?;
        let row = row.ok_or_else(|| DbErr::RecordNotFound("the quota's row".to_owned()))?;
        let wait: i64 = row.try_get("", "wait_us")?;
        Ok(Duration::from_micros(u64::try_from(wait).unwrap_or_default()))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4)
}
