//! The style that a project keeps, so that its series looks alike.

use domain::command::Command;
use domain::style::Style;
use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::OnConflict;
use time::OffsetDateTime;

use super::{Doing, Store, StoreError};

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "project_styles")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) project_id: i64,
    pub(super) style: Json,
    pub(super) updated_at: TimeDateTimeWithTimeZone,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Store {
    /// The style of a project, where one is kept.
    pub async fn project_style(&self, project_id: i64) -> Result<Option<Style>, StoreError> {
        kept(&self.db, project_id).doing("read a project's style").await
    }

    /// Keeps a style for the later jobs of a project, in place of what was kept.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn keep_project_style(&self, project_id: i64, style: &Style) -> Result<(), StoreError> {
        let row = ActiveModel {
            project_id: Set(project_id),
            style: Set(serde_json::to_value(style).expect("a style serialises")),
            updated_at: Set(OffsetDateTime::now_utc()),
        };
        let instead =
            OnConflict::column(Column::ProjectId).update_columns([Column::Style, Column::UpdatedAt]).to_owned();
        let keep = Entity::insert(row).on_conflict(instead).exec_without_returning(&self.db);
        keep.doing("keep a project's style").await.map(drop)
    }

    /// Forgets the style of a project. `false` where none was kept.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn clear_project_style(&self, project_id: i64) -> Result<bool, StoreError> {
        let cleared = Entity::delete_by_id(project_id).exec(&self.db).doing("forget a project's style").await?;
        Ok(cleared.rows_affected > 0)
    }
}

/// What the images of a new job share: what its command says, then what its project keeps, then what is usual here.
pub(super) async fn settled(db: &impl ConnectionTrait, command: &Command, usual: &Style) -> Result<Style, DbErr> {
    let kept = kept(db, command.project_id).await?;
    Ok(command.config.style().or(kept.unwrap_or_default()).or(usual.clone()))
}

async fn kept(db: &impl ConnectionTrait, project_id: i64) -> Result<Option<Style>, DbErr> {
    let Some(row) = Entity::find_by_id(project_id).one(db).await? else { return Ok(None) };
    let style = serde_json::from_value(row.style);
    style.map(Some).map_err(|error| DbErr::Type(format!("the style of project {project_id} is not readable ({error})")))
}
