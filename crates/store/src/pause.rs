//! An operator's pause: while it lasts, no worker pays for a request. One row, shared by all workers.

use sea_orm::{ConnectionTrait, DbErr, QueryResult, Statement, Value};
use time::OffsetDateTime;
use tracing::Instrument;

use super::account_key::time_from_ms;
use super::dialect::Dialect;
use super::{QueryExt, Store, StoreError};

/// A pause that an operator has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// Since when the workers are paused, by the database's clock.
    pub since: OffsetDateTime,
    /// The operator's reason.
    pub reason: Option<String>,
}

impl Store {
    /// Reads the operator's pause; `None` if the workers are not paused.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known whether they are paused.
    pub async fn read_pause(&self) -> Result<Option<Pause>, StoreError> {
        async {
            let sql = "SELECT paused_since_ms, paused_reason FROM account_gate WHERE name = 'stability'";
            let statement = Statement::from_string(self.db.get_database_backend(), sql);
            async {
                let row: QueryResult = self
                    .db
                    .query_one_raw(statement)
                    .await?
                    .ok_or_else(|| DbErr::RecordNotFound("account gate".to_owned()))?;
                let Some(since_ms) = row.try_get::<Option<i64>>("", "paused_since_ms")? else { return Ok(None) };
                Ok(Some(Pause { since: time_from_ms(since_ms)?, reason: row.try_get("", "paused_reason")? }))
            }
            .with_timeout("read the account gate")
            .await
        }
        .instrument(self.operation_span("find", "account_gate"))
        .await
    }

    /// Pauses all workers: from now on no request is paid for. Replaces the reason of an earlier pause.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known whether the workers are paused.
    pub async fn pause(&self, reason: Option<&str>) -> Result<(), StoreError> {
        async {
            let clock_us = Dialect::for_backend(self.db.get_database_backend()).clock_us;
            let sql = format!(
                "UPDATE account_gate SET paused_since_ms = coalesce(paused_since_ms, ({clock_us}) / 1000), \
                 paused_reason = $1 WHERE name = 'stability'"
            );
            let values = [Value::from(reason.map(str::to_owned))];
            let statement = Statement::from_sql_and_values(self.db.get_database_backend(), &sql, values);
            async {
                match self.db.execute_raw(statement).await?.rows_affected() {
                    0 => Err(DbErr::RecordNotUpdated),
                    _ => Ok(()),
                }
            }
            .with_timeout("pause the workers")
            .await
        }
        .instrument(self.operation_span("pause", "account_gate"))
        .await
    }

    /// Ends the operator's pause. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known whether the workers are still paused.
    pub async fn resume(&self) -> Result<bool, StoreError> {
        async {
            let sql = "UPDATE account_gate SET paused_since_ms = NULL, paused_reason = NULL \
                       WHERE name = 'stability' AND paused_since_ms IS NOT NULL";
            let statement = Statement::from_string(self.db.get_database_backend(), sql);
            let updated = self.db.execute_raw(statement).with_timeout("resume the workers").await?;
            Ok(updated.rows_affected() > 0)
        }
        .instrument(self.operation_span("resume", "account_gate"))
        .await
    }
}
