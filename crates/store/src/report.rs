//! Reports of jobs and images, and the search for jobs.

use std::ops::RangeInclusive;
use std::str::FromStr;

use domain::failure::{ImageFailureCode, JobFailureCode, UnknownCode};
use domain::money::MicroUsd;
use domain::state::JobState;
use schemars::JsonSchema;
use sea_orm::sea_query::{CommonTableExpression, Expr, Query, SimpleExpr};
use sea_orm::{
    ColumnTrait, Condition, DbBackend, DerivePartialModel, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::account_key::time_from_ms;
use super::{QueryExt, Store, StoreError, asset, job};

/// Maximum number of rows of one query.
const PAGE_SIZE: u64 = 500;
/// The characters of a description by which jobs are found: those of the index.
const DESCRIPTION_CHARS: usize = 60;
/// Images that are read before the jobs.
const FEW_IMAGES: u64 = 2_000;

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only those of this project.
    pub project_id: Option<i64>,
    /// Only those with this status.
    pub status: Option<String>,
    /// Only those that were first claimed, or submitted, since then.
    pub since: Option<OffsetDateTime>,
    /// Only those with this failure, or with an image that has it.
    pub failure: Option<FailureCode>,
    /// Only those with an id in this range.
    pub ids: Option<RangeInclusive<Uuid>>,
    /// Only those with a description that begins with this text. Its first 60 characters count.
    pub description: Option<String>,
}

/// Why a job or an image failed. No code of one set is in the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCode {
    /// Of a job.
    Job(JobFailureCode),
    /// Of an image.
    Image(ImageFailureCode),
}

impl FromStr for FailureCode {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        text.parse().map(Self::Job).or_else(|_| text.parse().map(Self::Image))
    }
}

/// The place of a job in a list, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobCursor {
    /// When the job was first claimed, or submitted.
    pub created_at: OffsetDateTime,
    /// The job's id.
    pub job_id: Uuid,
}

/// A job as shown by `asset-worker jobs` and the HTTP API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct JobReport {
    /// The job's id.
    pub job_id: Uuid,
    /// The id of its project.
    pub project_id: i64,
    /// `waiting`, `running`, `completed`, `failed`, `cancelled` or `purged`.
    pub status: String,
    /// The job whose images it makes again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<Uuid>,
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
    /// When the job was first claimed; before that, when it was submitted or cancelled.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub created_at: OffsetDateTime,
    /// When the command of a job that waits in the database is published.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub due_at: Option<OffsetDateTime>,
    /// When the job ended.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub finished_at: Option<OffsetDateTime>,
    /// The job's images; empty in a list of jobs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assets: Vec<AssetReport>,
}

/// An image as shown by `asset-worker jobs` and the HTTP API.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AssetReport {
    /// Index within the job, from 1.
    pub index: i32,
    /// The index in the job whose images are made again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_index: Option<i32>,
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
    /// What they cost, in USD; 0 also for images that were made before this was recorded.
    pub cost_usd: f64,
    /// When its state last changed.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub updated_at: OffsetDateTime,
    /// The image metadata: description, prompt, seed and others.
    pub metadata: serde_json::Value,
}

/// The columns of a job that a report shows; its command, style and terminal event are not loaded.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "job::Entity")]
struct JobRow {
    id: Uuid,
    project_id: i64,
    status: String,
    retry_of: Option<Uuid>,
    total: i32,
    attempts: i32,
    error_code: Option<String>,
    error_message: Option<String>,
    cost_usd: f64,
    published_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    due_at_ms: Option<i64>,
    finished_at: Option<OffsetDateTime>,
}

impl JobReport {
    /// Its place in a list.
    pub fn cursor(&self) -> JobCursor {
        JobCursor { created_at: self.created_at, job_id: self.job_id }
    }
}

impl From<JobRow> for JobReport {
    fn from(row: JobRow) -> Self {
        Self {
            job_id: row.id,
            project_id: row.project_id,
            status: row.status,
            retry_of: row.retry_of,
            total: row.total,
            attempts: row.attempts,
            error_code: row.error_code,
            error_message: row.error_message,
            cost_usd: row.cost_usd,
            event_published: row.published_at.is_some(),
            created_at: row.created_at,
            due_at: row.due_at_ms.and_then(|ms| time_from_ms(ms).ok()),
            finished_at: row.finished_at,
            assets: Vec::new(),
        }
    }
}

impl Store {
    /// The newest jobs that the filter selects, at most `limit`, newest first. Read in pages of at most 500 jobs.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if a page cannot be read.
    pub async fn list_jobs(&self, filter: &JobFilter, limit: u64) -> Result<Vec<JobReport>, StoreError> {
        let mut jobs: Vec<JobReport> = Vec::new();
        loop {
            let wanted = std::cmp::min(PAGE_SIZE, limit.saturating_sub(jobs.len() as u64));
            let page = self.read_jobs_page(filter, jobs.last().map(JobReport::cursor), wanted).await?;
            let is_last = (page.len() as u64) < PAGE_SIZE;
            jobs.extend(page);
            if is_last || jobs.len() as u64 >= limit {
                return Ok(jobs);
            }
        }
    }

    /// The newest jobs that the filter selects, after the place `after`, in one query of at most `limit` jobs.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_jobs_page(
        &self,
        filter: &JobFilter,
        after: Option<JobCursor>,
        limit: u64,
    ) -> Result<Vec<JobReport>, StoreError> {
        let (created_at, id) = (job::Column::CreatedAt, job::Column::Id);
        // Of a remembered cancellation, the job is not known; a purged job is removed.
        let hidden = [JobState::Cancelled, JobState::Purged].map(JobState::as_str);
        let known = job::Column::Status.is_not_in(hidden);
        let mut query = job::Entity::find().filter(known).order_by_desc(created_at).order_by_desc(id).limit(limit);
        let JobFilter { project_id, status, since, failure, ids, description } = filter;
        let failed_image = match failure {
            Some(FailureCode::Image(code)) => Some(asset::Column::ErrorCode.eq(code.as_str())),
            Some(FailureCode::Job(_)) | None => None,
        };
        let failed_job = match failure {
            Some(FailureCode::Job(code)) => Some(job::Column::ErrorCode.eq(code.as_str())),
            Some(FailureCode::Image(_)) | None => None,
        };
        let described = description.as_ref().map(|text| begins_with(self.db.get_database_backend(), text));
        for of_image in failed_image.into_iter().chain(described) {
            query = query.filter(self.has_image(of_image).await?);
        }
        let conditions = Condition::all()
            .add_option(project_id.map(|project_id| job::Column::ProjectId.eq(project_id)))
            .add_option(status.as_ref().map(|status| job::Column::Status.eq(status.as_str())))
            .add_option(since.map(|since| created_at.gte(since)))
            .add_option(failed_job)
            .add_option(ids.as_ref().map(|ids| id.between(*ids.start(), *ids.end())));
        query = query.filter(conditions);
        if let Some(last) = after {
            // The first condition lets the database begin at that place of the index.
            let same_time = created_at.eq(last.created_at).and(id.lt(last.job_id));
            let is_after = created_at.lt(last.created_at).or(same_time);
            query = query.filter(created_at.lte(last.created_at)).filter(is_after);
        }
        let rows = query.into_partial_model::<JobRow>().all(&self.db).with_timeout("list jobs").await?;
        Ok(rows.into_iter().map(JobReport::from).collect())
    }

    /// SQL condition: an image of the job satisfies this one.
    ///
    /// If few do, the database reads them first: otherwise it expects them among the newest jobs, and looks at all jobs
    /// when they are among the oldest.
    async fn has_image(&self, condition: SimpleExpr) -> Result<SimpleExpr, StoreError> {
        let first = asset::Entity::find()
            .select_only()
            .column(asset::Column::JobId)
            .filter(condition.clone())
            .limit(FEW_IMAGES + 1)
            .into_tuple::<Uuid>()
            .all(&self.db)
            .with_timeout("list jobs")
            .await?;
        let mut images =
            Query::select().column(asset::Column::JobId).from(asset::Entity).and_where(condition).to_owned();
        if first.len() as u64 <= FEW_IMAGES {
            let read_first =
                CommonTableExpression::new().query(images).table_name("images").materialized(true).to_owned();
            let with = Query::with().cte(read_first).to_owned();
            images = Query::select().column(asset::Column::JobId).from("images").with_cte(with).take();
        }
        Ok(job::Column::Id.in_subquery(images))
    }

    /// A job with its images; `None` if it is not known.
    pub async fn read_job_report(&self, job_id: Uuid) -> Result<Option<JobReport>, StoreError> {
        let finding = job::Entity::find_by_id(job_id).into_partial_model::<JobRow>();
        let Some(row) = finding.one(&self.db).with_timeout("read a job").await? else { return Ok(None) };
        let assets = asset::read_images(&self.db, job_id).with_timeout("read a job").await?;
        Ok(Some(JobReport { assets: assets.into_iter().map(asset_report).collect(), ..JobReport::from(row) }))
    }
}

pub(super) fn asset_report(row: asset::Model) -> AssetReport {
    AssetReport {
        index: row.index,
        original_index: row.original_index,
        status: row.status,
        file_path: row.file_path,
        size_bytes: row.size_bytes,
        error_code: row.error_code,
        error_message: row.error_message,
        requests: row.requests,
        cost_usd: MicroUsd(row.cost_micro_usd).usd(),
        updated_at: row.updated_at,
        metadata: row.metadata,
    }
}

/// SQL condition: the description of an image begins with this text.
fn begins_with(backend: DbBackend, text: &str) -> SimpleExpr {
    // The expression of the index.
    let beginning = match backend {
        DbBackend::Sqlite => "substr(metadata ->> 'description', 1, 60)",
        _ => "left(metadata ->> 'description', 60) COLLATE \"C\"",
    };
    let first: String = text.chars().take(DESCRIPTION_CHARS).collect();
    let last = format!("{first}{}", char::MAX);
    Expr::cust(beginning).gte(first).and(Expr::cust(beginning).lt(last))
}
