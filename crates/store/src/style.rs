//! Stored styles of projects, which give all jobs of a project the same look.

use domain::command::Command;
use domain::style::Style;
use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::OnConflict;
use sea_orm::{QueryOrder, QuerySelect};
use time::OffsetDateTime;

use super::{QueryExt, Store, StoreError};

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
    /// The stored style of a project.
    pub async fn read_project_style(&self, project_id: i64) -> Result<Option<Style>, StoreError> {
        find_style(&self.db, project_id).with_timeout("read a project's style").await
    }

    /// The stored styles with their projects, by project, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn list_project_styles(&self, limit: u64) -> Result<Vec<(i64, Style)>, StoreError> {
        let rows = Entity::find().order_by_asc(Column::ProjectId).limit(limit).all(&self.db);
        let rows = rows.with_timeout("list the styles of projects").await?;
        let style = |row: Model| Some((row.project_id, serde_json::from_value(row.style).ok()?));
        Ok(rows.into_iter().filter_map(style).collect())
    }

    /// Stores a style for later jobs of a project, replacing the stored one.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn save_project_style(&self, project_id: i64, style: &Style) -> Result<(), StoreError> {
        let row = ActiveModel {
            project_id: Set(project_id),
            style: Set(serde_json::to_value(style).expect("a style is serializable")),
            updated_at: Set(OffsetDateTime::now_utc()),
        };
        let on_conflict =
            OnConflict::column(Column::ProjectId).update_columns([Column::Style, Column::UpdatedAt]).to_owned();
        let keep = Entity::insert(row).on_conflict(on_conflict).exec_without_returning(&self.db);
        keep.with_timeout("save a project's style").await.map(drop)
    }

    /// Deletes the stored style of a project. Returns `false` if there was none.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn clear_project_style(&self, project_id: i64) -> Result<bool, StoreError> {
        let cleared = Entity::delete_by_id(project_id).exec(&self.db).with_timeout("delete a project's style").await?;
        Ok(cleared.rows_affected > 0)
    }
}

/// The style of a new job: for each key the command's value, otherwise the project's, otherwise the default.
pub(super) async fn resolve_style(db: &impl ConnectionTrait, command: &Command, usual: &Style) -> Result<Style, DbErr> {
    let stored = find_style(db, command.project_id).await?;
    Ok(command.config.style().or(stored.unwrap_or_default()).or(usual.clone()))
}

async fn find_style(db: &impl ConnectionTrait, project_id: i64) -> Result<Option<Style>, DbErr> {
    let Some(row) = Entity::find_by_id(project_id).one(db).await? else { return Ok(None) };
    let style = serde_json::from_value(row.style);
    style.map(Some).map_err(|error| DbErr::Type(format!("cannot parse the style of project {project_id}: {error}")))
}
