//! API keys: whether the API accepts paid requests with them. One row for each key, shared by all workers that use it.

use std::fmt;
use std::time::Duration;

use domain::digest;
use domain::failure::JobFailureCode;
use domain::state::{JobState, KeyState, Transition, key as step};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Statement, Value};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::dialect::Dialect;
use super::{QueryExt, Store, StoreError};

/// The wait before the first probe of a refused key; doubled after each probe.
const FIRST_PROBE_WAIT: Duration = Duration::from_secs(30);
/// The longest wait before a probe.
const MAX_PROBE_WAIT: Duration = Duration::from_mins(5);
/// A refused key whose probe is overdue by this long is used by no worker any more.
const UNUSED_AFTER: Duration = Duration::from_mins(10);

/// A hash by which the database names an API key. The key cannot be derived from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHash(String);

impl KeyHash {
    /// The first 16 hex digits of the SHA-256 of the key.
    pub fn new(key: &SecretString) -> Self {
        Self(digest::sha256(key.expose_secret()).chars().take(16).collect())
    }

    fn to_value(&self) -> Value {
        Value::from(self.0.clone())
    }
}

/// The number of a probe. Only the latest probe of a key can admit a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe(pub i64);

/// Why the API refuses paid requests with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `unauthorized` or `insufficient_credits`.
    pub code: JobFailureCode,
    /// The API's message.
    pub detail: String,
    /// When the key was refused, by the database's clock.
    pub since: OffsetDateTime,
}

/// The stored state of an API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// Why paid requests are refused; `None` if they are accepted.
    pub refusal: Option<Refusal>,
    /// The latest probe.
    pub probe: Probe,
    /// Whether the latest probe can admit a job.
    pub is_probing: bool,
}

/// The columns that [`KeyStatus::from_row`] reads.
const KEY_COLUMNS: &str = "status, refused_code, refused_detail, refused_since_ms, probe_number";

impl KeyStatus {
    fn from_row(row: &QueryResult) -> Result<Self, DbErr> {
        let status: String = row.try_get("", "status")?;
        let refusal = if status == KeyState::Accepted.as_str() {
            None
        } else {
            let code: String = row.try_get("", "refused_code")?;
            Some(Refusal {
                code: code.parse().map_err(|error| DbErr::Custom(format!("account key: {error}")))?,
                detail: row.try_get::<Option<String>>("", "refused_detail")?.unwrap_or_default(),
                since: time_from_ms(row.try_get("", "refused_since_ms")?)?,
            })
        };
        let probe = Probe(row.try_get("", "probe_number")?);
        Ok(Self { refusal, probe, is_probing: status == KeyState::Probing.as_str() })
    }
}

/// Converts milliseconds since 1970.
pub(super) fn time_from_ms(since_ms: i64) -> Result<OffsetDateTime, DbErr> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(since_ms) * 1_000_000)
        .map_err(|error| DbErr::Custom(error.to_string()))
}

/// SQL condition: the key is in a state from which the transition is allowed.
struct Precondition(Transition<KeyState>);

impl fmt::Display for Precondition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let states: Vec<String> = self.0.from.iter().map(|state| format!("'{}'", state.as_str())).collect();
        write!(formatter, "account_keys.status IN ({})", states.join(", "))
    }
}

/// A job that pays with a key.
#[derive(Debug, Clone, Copy)]
pub struct Payer<'a> {
    /// The key of its requests.
    pub key: &'a KeyHash,
    /// The successful probe that lets the job pay although the key is refused.
    pub probe: Option<Probe>,
}

/// Whether a job may pay with a key: the workers are not paused, and the key is accepted or the job admitted. Admits the
/// job if its probe allows that. Creates the key's row if there is none.
///
/// The answer holds until the transaction has ended: PostgreSQL locks the rows, and SQLite has one writer at a time.
pub(super) async fn may_pay(transaction: &DatabaseTransaction, payer: Payer<'_>, job_id: Uuid) -> Result<bool, DbErr> {
    let backend = transaction.get_database_backend();
    let lock = Dialect::for_backend(backend).row_lock(payer.probe.is_some());
    let sql = format!(
        "SELECT paused_since_ms, status, admitted_job FROM account_gate, account_keys \
         WHERE account_gate.name = 'stability' AND key_hash = $1{lock}"
    );
    let read = Statement::from_sql_and_values(backend, sql, [payer.key.to_value()]);
    let mut row = transaction.query_one_raw(read.clone()).await?;
    if row.is_none() {
        let created = step::CREATE.to.as_str();
        let sql = "INSERT INTO account_keys (key_hash, status) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let values = [payer.key.to_value(), created.into()];
        transaction.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
        row = transaction.query_one_raw(read).await?;
    }
    let row = row.ok_or_else(|| DbErr::RecordNotFound("account gate or key".to_owned()))?;
    if row.try_get::<Option<i64>>("", "paused_since_ms")?.is_some() {
        return Ok(false);
    }
    let status: String = row.try_get("", "status")?;
    if status == KeyState::Accepted.as_str() || row.try_get::<Option<Uuid>>("", "admitted_job")? == Some(job_id) {
        return Ok(true);
    }
    let Some(Probe(number)) = payer.probe else { return Ok(false) };
    let sql = format!(
        "UPDATE account_keys SET status = '{}', admitted_job = $3 WHERE key_hash = $1 AND probe_number = $2 AND {}",
        step::ADMIT.to.as_str(),
        Precondition(step::ADMIT)
    );
    let values = [payer.key.to_value(), number.into(), job_id.into()];
    let admitted = transaction.execute_raw(Statement::from_sql_and_values(backend, sql, values)).await?;
    Ok(admitted.rows_affected() > 0)
}

impl Store {
    /// Records that the API refused a paid request of a job, with the failure code and the API's message. Returns
    /// whether this refusal closed the gate: the key was accepted before.
    ///
    /// A refusal of the admitted job ends its admission; the next probe follows when it is due.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known whether the refusal was recorded.
    pub async fn refuse_key(
        &self,
        key: &KeyHash,
        job_id: Uuid,
        code: JobFailureCode,
        detail: &str,
    ) -> Result<bool, StoreError> {
        let clock_us = Dialect::for_backend(self.db.get_database_backend()).clock_us;
        let refusal = "refused_code = $2, refused_detail = $3, probe_number = probe_number + 1";
        let closing = format!(
            "UPDATE account_keys SET status = '{}', {refusal}, refused_since_ms = ({clock_us}) / 1000, \
             probe_due_ms = ({clock_us}) / 1000 + {wait}, probe_wait_ms = {wait} WHERE key_hash = $1 AND {}",
            step::REFUSE.to.as_str(),
            Precondition(step::REFUSE),
            wait = FIRST_PROBE_WAIT.as_millis(),
        );
        let ending = format!(
            "UPDATE account_keys SET status = '{}', {refusal}, admitted_job = NULL \
             WHERE key_hash = $1 AND admitted_job = $4 AND {}",
            step::REFUSE_ADMITTED.to.as_str(),
            Precondition(step::REFUSE_ADMITTED)
        );
        let values = [key.to_value(), code.as_str().into(), detail.into()];
        if self.update_key("refuse", &closing, values.clone()).await? {
            return Ok(true);
        }
        self.update_key("refuse", &ending, values.into_iter().chain([job_id.into()])).await?;
        Ok(false)
    }

    /// Starts a probe of a refused key, unless an admitted job has its lease or, with `when_due`, the next probe is not
    /// due yet. It ends an earlier probe.
    ///
    /// Each probe that was due doubles the wait for the next one; the others do not change it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known whether the probe has started.
    pub async fn begin_probe(&self, key: &KeyHash, when_due: bool) -> Result<Option<Probe>, StoreError> {
        async {
            let Dialect { clock_us, least, .. } = Dialect::for_backend(self.db.get_database_backend());
            let wait = format!("{least}(probe_wait_ms * 2, {})", MAX_PROBE_WAIT.as_millis());
            let (next, is_due) = if when_due {
                (
                    format!(", probe_wait_ms = {wait}, probe_due_ms = ({clock_us}) / 1000 + {wait}"),
                    format!("AND probe_due_ms <= ({clock_us}) / 1000"),
                )
            } else {
                (String::new(), String::new())
            };
            // Not `NOT EXISTS`: PostgreSQL would plan it as a join, and evaluate it before it waits for the row.
            let sql = format!(
                "UPDATE account_keys SET status = '{}', admitted_job = NULL, probe_number = probe_number + 1 {next} \
                 WHERE key_hash = $1 AND {} {is_due} AND (SELECT count(*) FROM jobs WHERE jobs.id = admitted_job \
                 AND jobs.status = '{}' AND jobs.lease_until_ms > ({clock_us}) / 1000) = 0 RETURNING probe_number",
                step::PROBE.to.as_str(),
                Precondition(step::PROBE),
                JobState::Running.as_str()
            );
            let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, [key.to_value()]);
            let row = self.db.query_one_raw(statement).with_timeout("start a probe of the account").await?;
            row.map(|row| row.try_get("", "probe_number").map(Probe))
                .transpose()
                .map_err(|error| StoreError::database("start a probe of the account", error))
        }
        .instrument(self.operation_span("probe", "account_keys"))
        .await
    }

    /// Records that a paid request of a job succeeded. Returns whether this opened the gate: the job was admitted.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known whether the gate is open.
    pub async fn accept_key(&self, key: &KeyHash, job_id: Uuid) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE account_keys SET status = '{}', admitted_job = NULL WHERE key_hash = $1 AND admitted_job = $2 AND {}",
            step::ACCEPT.to.as_str(),
            Precondition(step::ACCEPT)
        );
        self.update_key("accept", &sql, [key.to_value(), job_id.into()]).await
    }

    /// Reads the state of a key; `None` if nothing was paid for with it yet.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the state is not known.
    pub async fn read_key(&self, key: &KeyHash) -> Result<Option<KeyStatus>, StoreError> {
        self.find_key("key_hash = $1", [key.to_value()]).await
    }

    /// Reads the latest refusal of any key that workers use, for callers that have no key.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it is not known whether there is one.
    pub async fn read_latest_refusal(&self) -> Result<Option<Refusal>, StoreError> {
        let clock_us = Dialect::for_backend(self.db.get_database_backend()).clock_us;
        let filter = format!(
            "status <> '{}' AND probe_due_ms > ({clock_us}) / 1000 - {} ORDER BY refused_since_ms DESC LIMIT 1",
            KeyState::Accepted.as_str(),
            UNUSED_AFTER.as_millis()
        );
        Ok(self.find_key(&filter, []).await?.and_then(|status| status.refusal))
    }

    async fn find_key<const N: usize>(
        &self,
        filter: &str,
        values: [Value; N],
    ) -> Result<Option<KeyStatus>, StoreError> {
        async {
            let sql = format!("SELECT {KEY_COLUMNS} FROM account_keys WHERE {filter}");
            let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
            async { self.db.query_one_raw(statement).await?.as_ref().map(KeyStatus::from_row).transpose() }
                .with_timeout("read the account's key")
                .await
        }
        .instrument(self.operation_span("find", "account_keys"))
        .await
    }

    /// Runs an update of one key; returns whether the key was in a state that allows it.
    async fn update_key(
        &self,
        operation: &'static str,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<bool, StoreError> {
        let statement = Statement::from_sql_and_values(self.db.get_database_backend(), sql, values);
        let updating = self.db.execute_raw(statement).with_timeout("update the account's key");
        let updated = updating.instrument(self.operation_span(operation, "account_keys")).await?;
        Ok(updated.rows_affected() > 0)
    }
}
