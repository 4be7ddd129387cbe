//! The audit of the HTTP API: who asked for which change.

use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use sea_orm::{QueryOrder, QuerySelect};
use time::OffsetDateTime;
use tracing::Instrument;

use super::{QueryExt, Store, StoreError};

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "audit")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    at: TimeDateTimeWithTimeZone,
    role: String,
    address: String,
    action: String,
    job_id: Option<Uuid>,
    #[sea_orm(column_type = "Text", nullable)]
    detail: Option<String>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// A call that asked for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Which token the caller had.
    pub role: String,
    /// The caller's IP address.
    pub address: String,
    /// What was asked for, such as `submit`.
    pub action: String,
    /// The job that the call names.
    pub job_id: Option<Uuid>,
    /// What else the call names, such as a dead letter or a reason.
    pub detail: Option<String>,
}

impl Store {
    /// Adds an entry to the audit, with the time of this process.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn record_audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        let AuditEntry { role, address, action, job_id, detail } = entry;
        let row = ActiveModel {
            id: Set(Uuid::now_v7()),
            at: Set(OffsetDateTime::now_utc()),
            role: Set(role),
            address: Set(address),
            action: Set(action),
            job_id: Set(job_id),
            detail: Set(detail),
        };
        Entity::insert(row)
            .exec_without_returning(&self.db)
            .with_timeout("record a change in the audit")
            .instrument(self.operation_span("insert", "audit"))
            .await
            .map(drop)
    }

    /// The newest entries of the audit with their times, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_audit(&self, limit: u64) -> Result<Vec<(OffsetDateTime, AuditEntry)>, StoreError> {
        let rows =
            Entity::find().order_by_desc(Column::Id).limit(limit).all(&self.db).with_timeout("read the audit").await?;
        let entry = |Model { at, role, address, action, job_id, detail, .. }| {
            (at, AuditEntry { role, address, action, job_id, detail })
        };
        Ok(rows.into_iter().map(entry).collect())
    }
}
