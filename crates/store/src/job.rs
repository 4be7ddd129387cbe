//! The table `jobs`.

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "jobs")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) id: Uuid,
    pub(super) project_id: i64,
    pub(super) status: String,
    pub(super) digest: String,
    pub(super) command: Option<Json>,
    pub(super) style: Option<Json>,
    pub(super) engine: Option<String>,
    pub(super) total: i32,
    pub(super) attempts: i32,
    pub(super) error_code: Option<String>,
    pub(super) error_message: Option<String>,
    pub(super) cost_usd: f64,
    pub(super) lease_token: i64,
    pub(super) lease_until_ms: i64,
    pub(super) lease_losses: i32,
    pub(super) trace_parent: Option<String>,
    pub(super) terminal_type: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub(super) terminal_event: Option<String>,
    pub(super) published_at: Option<TimeDateTimeWithTimeZone>,
    pub(super) created_at: TimeDateTimeWithTimeZone,
    pub(super) updated_at: TimeDateTimeWithTimeZone,
    pub(super) finished_at: Option<TimeDateTimeWithTimeZone>,
    pub(super) cancelled_at: Option<TimeDateTimeWithTimeZone>,
    pub(super) cancel_reason: Option<String>,
    pub(super) expires_at_ms: Option<i64>,
    pub(super) publish_due_at: Option<TimeDateTimeWithTimeZone>,
    pub(super) retry_of: Option<Uuid>,
    pub(super) reply: Option<Json>,
    pub(super) due_at_ms: Option<i64>,
    pub(super) purged_at: Option<TimeDateTimeWithTimeZone>,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
