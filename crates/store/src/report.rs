//! Reports for `asset-worker jobs`.

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{QueryExt, Store, StoreError, asset, job};

/// A job as shown by `asset-worker jobs`.
#[derive(Debug, Serialize)]
pub struct JobReport {
    /// The job's id.
    pub job_id: Uuid,
    /// The id of its project.
    pub project_id: i64,
    /// `running`, `completed` or `failed`.
    pub status: String,
    /// Number of images requested by the command.
    pub total: i32,
    /// Number of attempts that have ended without ending the job.
    pub attempts: i32,
    /// The code of its failure.
    pub error_code: Option<String>,
    /// The failure as a sentence.
    pub error_message: Option<String>,
    /// What the job cost, in USD.
    pub cost_usd: f64,
    /// Whether a queue has received its terminal event.
    pub event_published: bool,
    /// When the job was first claimed.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the job ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub finished_at: Option<OffsetDateTime>,
    /// The job's images; empty in a list of jobs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assets: Vec<AssetReport>,
}

/// An image as shown by `asset-worker jobs`.
#[derive(Debug, Serialize)]
pub struct AssetReport {
    /// Index within the job, from 1.
    pub index: i32,
    /// `pending`, `completed` or `failed`.
    pub status: String,
    /// The path relative to the storage root.
    pub file_path: Option<String>,
    /// Size of the file in bytes.
    pub size_bytes: Option<i64>,
    /// The code of its failure.
    pub error_code: Option<String>,
    /// The failure as a sentence.
    pub error_message: Option<String>,
    /// Number of requests sent for it.
    pub requests: i32,
    /// The image metadata: description, prompt, seed and others.
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
    /// The newest jobs, at most `limit`, newest first; all projects or one.
    pub async fn list_jobs(&self, project_id: Option<i64>, limit: u64) -> Result<Vec<JobReport>, StoreError> {
        let mut query = job::Entity::find().order_by_desc(job::Column::CreatedAt).limit(limit);
        if let Some(project_id) = project_id {
            query = query.filter(job::Column::ProjectId.eq(project_id));
        }
        Ok(query.all(&self.db).with_timeout("list jobs").await?.into_iter().map(JobReport::from).collect())
    }

    /// A job with its images; `None` if it is not known.
    pub async fn read_job_report(&self, job_id: Uuid) -> Result<Option<JobReport>, StoreError> {
        let Some(row) = job::Entity::find_by_id(job_id).one(&self.db).with_timeout("read a job").await? else {
            return Ok(None);
        };
        let assets = asset::Entity::find()
            .filter(asset::Column::JobId.eq(job_id))
            .order_by_asc(asset::Column::Index)
            .all(&self.db)
            .with_timeout("read a job")
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
