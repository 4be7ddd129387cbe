//! What `asset-worker jobs` shows.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Doing, Store, StoreError, asset, job};

/// A job, for people.
#[derive(Debug, Serialize)]
pub struct JobReport {
    /// Its id.
    pub job_id: Uuid,
    /// Its project.
    pub project_id: i64,
    /// `running`, `completed` or `failed`.
    pub status: String,
    /// Images asked for.
    pub total: i32,
    /// Tries that have ended without an end of the job.
    pub attempts: i32,
    /// Why it failed.
    pub error_code: Option<String>,
    /// Why it failed, in a sentence.
    pub error_message: Option<String>,
    /// What it cost, in USD.
    pub cost_usd: f64,
    /// Whether a queue has taken its terminal event.
    pub event_published: bool,
    /// When it was first claimed.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// Its images; empty in a list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assets: Vec<AssetReport>,
}

/// An image, for people.
#[derive(Debug, Serialize)]
pub struct AssetReport {
    /// From 1.
    pub index: i32,
    /// `pending`, `completed` or `failed`.
    pub status: String,
    /// Below the storage root.
    pub file_path: Option<String>,
    /// Length of the file.
    pub size_bytes: Option<i64>,
    /// Why it failed.
    pub error_code: Option<String>,
    /// Why it failed, in a sentence.
    pub error_message: Option<String>,
    /// Requests sent for it.
    pub requests: i32,
    /// Description, prompt, seed and so on.
    pub metadata: serde_json::Value,
}

impl From<job::Model> for JobReport {
    fn from(row: job::Model) -> Self {
        Self {
            job_id: row.id,
            project_id: row.project_id,
            status: row.status,
            total: row.total,
            attempts: row.attempts,
            error_code: row.error_code,
            error_message: row.error_message,
            cost_usd: row.cost_usd,
            event_published: row.published_at.is_some(),
            created_at: row.created_at,
            finished_at: row.finished_at,
            assets: Vec::new(),
        }
    }
}

impl Store {
    /// The newest jobs, newest first.
    pub async fn jobs(&self, project_id: Option<i64>, limit: u64) -> Result<Vec<JobReport>, StoreError> {
        let mut query = job::Entity::find().order_by_desc(job::Column::CreatedAt).limit(limit);
        if let Some(project_id) = project_id {
            query = query.filter(job::Column::ProjectId.eq(project_id));
        }
        Ok(query.all(&self.db).doing("list jobs").await?.into_iter().map(JobReport::from).collect())
    }

    /// One job with its images.
    pub async fn job(&self, job_id: Uuid) -> Result<Option<JobReport>, StoreError> {
        let Some(row) = job::Entity::find_by_id(job_id).one(&self.db).doing("show a job").await? else {
            return Ok(None);
        };
        let assets = asset::Entity::find()
            .filter(asset::Column::JobId.eq(job_id))
            .order_by_asc(asset::Column::Index)
            .all(&self.db)
            .doing("show a job")
            .await?;
        let assets = assets
            .into_iter()
            .map(|row| AssetReport {
                index: row.index,
                status: row.status,
                file_path: row.file_path,
                size_bytes: row.size_bytes,
                error_code: row.error_code,
                error_message: row.error_message,
                requests: row.requests,
                metadata: row.metadata,
            })
            .collect();
        Ok(Some(JobReport { assets, ..row.into() }))
    }
}
