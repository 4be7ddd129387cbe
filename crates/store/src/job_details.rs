//! All that is stored of one job or one image, for people who look at it.

use domain::command::Command;
use domain::outcome::Origin;
use domain::state::{JobState, RowState};
use domain::trace::TraceContext;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DerivePartialModel, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::account_key::time_from_ms;
use super::attempt::Attempt;
use super::report::asset_report;
use super::{AssetReport, JobReport, QueryExt, Store, StoreError, asset, attempt, job};

/// Maximum number of other jobs that are listed.
const MAX_OTHERS: u64 = 100;

/// A job with its images and its history.
#[derive(Debug)]
pub struct JobDetails {
    /// The job with its images.
    pub report: JobReport,
    /// Its command; `None` if that was invalid.
    pub command: Option<Command>,
    /// The engine as settled at the first claim.
    pub engine: Option<String>,
    /// Its claims, oldest first. Those before the upgrade to the version that records them are missing.
    pub attempts: Vec<Attempt>,
    /// Whether a worker has claimed it.
    pub was_claimed: bool,
    /// When it was cancelled.
    pub cancelled_at: Option<OffsetDateTime>,
    /// Why it was cancelled.
    pub cancel_reason: Option<String>,
    /// From then on, no request is sent for it.
    pub expires_at: Option<OffsetDateTime>,
    /// When a queue received its terminal event.
    pub published_at: Option<OffsetDateTime>,
    /// The body of its terminal event.
    pub terminal_event: Option<String>,
    /// The trace of its last claim.
    pub trace: Option<TraceContext>,
    /// The jobs that make its images again, oldest first, at most 100.
    pub retries: Vec<RelatedJob>,
}

/// A job that has to do with another one.
#[derive(Debug, Clone, DerivePartialModel)]
#[sea_orm(entity = "job::Entity")]
pub struct RelatedJob {
    /// Its id.
    pub id: Uuid,
    /// Its status.
    pub status: String,
}

/// An image and those that are copies of it.
#[derive(Debug)]
pub struct ImageDetails {
    /// The project.
    pub project_id: i64,
    /// The image.
    pub image: AssetReport,
    /// The file format, if it is completed.
    pub format: Option<String>,
    /// Width and height in pixels, if it is completed.
    pub dimensions: Option<(i32, i32)>,
    /// SHA-256 of the file, if it is completed.
    pub sha256: Option<String>,
    /// Whether the job has ended, so that the image can be made again.
    pub job_has_ended: bool,
    /// Images that were copied from the cache and have the same file, but this one: newest first, at most 100.
    pub copies: Vec<ImageCopy>,
    /// The generated image with the same file, if this one was copied from the cache.
    pub original: Option<ImageCopy>,
}

/// An image with the same file as another one.
#[derive(Debug, Clone, DerivePartialModel)]
#[sea_orm(entity = "asset::Entity")]
pub struct ImageCopy {
    /// Its job.
    pub job_id: Uuid,
    /// Its index in that job.
    pub index: i32,
    /// The project of the job.
    pub project_id: i64,
    /// When it was generated or copied.
    pub updated_at: OffsetDateTime,
}

impl Store {
    /// Reads a job; `None` if it is not known.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_job_details(&self, job_id: Uuid) -> Result<Option<JobDetails>, StoreError> {
        async {
            let doing = "read a job";
            let known = job::Column::Status.ne(JobState::Cancelled.as_str());
            let row = job::Entity::find_by_id(job_id).filter(known).one(&self.db).with_timeout(doing).await?;
            let Some(row) = row else { return Ok(None) };
            let Some(report) = self.read_job_report(job_id).await? else { return Ok(None) };
            let attempts = attempt::read(&self.db, job_id).with_timeout(doing).await?;
            let retries = job::Entity::find()
                .filter(job::Column::RetryOf.eq(job_id))
                .order_by_asc(job::Column::CreatedAt)
                .limit(MAX_OTHERS)
                .into_partial_model::<RelatedJob>()
                .all(&self.db)
                .with_timeout(doing)
                .await?;
            Ok(Some(JobDetails {
                command: row.command.and_then(|command| serde_json::from_value(command).ok()),
                engine: row.engine,
                attempts,
                was_claimed: row.lease_token > 0,
                cancelled_at: row.cancelled_at,
                cancel_reason: row.cancel_reason,
                expires_at: row.expires_at_ms.and_then(|ms| time_from_ms(ms).ok()),
                published_at: row.published_at,
                terminal_event: row.terminal_event,
                trace: TraceContext::parse(row.trace_parent.as_deref(), None),
                retries,
                report,
            }))
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// Reads an image; `None` if it is not known.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_image_details(&self, job_id: Uuid, index: u32) -> Result<Option<ImageDetails>, StoreError> {
        let Ok(index) = i32::try_from(index) else { return Ok(None) };
        async {
            let doing = "read an image";
            let row = asset::Entity::find()
                .filter(asset::Column::JobId.eq(job_id))
                .filter(asset::Column::Index.eq(index))
                .one(&self.db)
                .with_timeout(doing)
                .await?;
            let Some(row) = row else { return Ok(None) };
            let ended = job::Entity::find_by_id(job_id).filter(job::Column::FinishedAt.is_not_null());
            let job_has_ended = ended.select_only().column(job::Column::Id).into_tuple::<Uuid>().one(&self.db);
            let job_has_ended = job_has_ended.with_timeout(doing).await?.is_some();
            let same_file = |origin: &str| {
                asset::Entity::find()
                    .filter(asset::Column::Fingerprint.eq(row.fingerprint))
                    .filter(asset::Column::Status.eq(RowState::Completed.as_str()))
                    .filter(asset::Column::Sha256.eq(row.sha256.as_deref()))
                    .filter(asset::Column::Id.ne(row.id))
                    .filter(Expr::cust("metadata ->> 'origin'").eq(origin))
                    .order_by_desc(asset::Column::UpdatedAt)
            };
            let is_completed = row.fingerprint.is_some() && row.sha256.is_some();
            let (mut copies, mut original) = (Vec::new(), None);
            if is_completed {
                let query = same_file(Origin::Cache.as_str()).limit(MAX_OTHERS).into_partial_model::<ImageCopy>();
                copies = query.all(&self.db).with_timeout(doing).await?;
            }
            if is_completed && row.parse_metadata().origin == Some(Origin::Cache) {
                let query = same_file(Origin::Generated.as_str()).into_partial_model::<ImageCopy>();
                original = query.one(&self.db).with_timeout(doing).await?;
            }
            Ok(Some(ImageDetails {
                project_id: row.project_id,
                format: row.format.clone(),
                dimensions: row.width.zip(row.height),
                sha256: row.sha256.clone(),
                job_has_ended,
                copies,
                original,
                image: asset_report(row),
            }))
        }
        .instrument(self.operation_span("find", "assets"))
        .await
    }
}
