//! What the rows of a job tell about the events that were published for it.

use domain::command::JobKey;
use domain::event::Event;
use domain::outcome::{Asset, ImageState};
use domain::trace::TraceContext;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::claim::terminal_event;
use super::{QueryExt, Store, StoreError, asset, job};
use domain::state::JobState;

/// A job as far as its events are concerned.
#[derive(Debug)]
pub struct JobHistory {
    /// The ids of the job and of its project.
    pub key: JobKey,
    /// Number of images of the job.
    pub total: u32,
    /// When it was first claimed; `None` if no worker has claimed it.
    pub started_at: Option<OffsetDateTime>,
    /// The trace of its last claim.
    pub trace: Option<TraceContext>,
    /// The images that are completed or have failed, with the time of their last change, in the order of these times.
    pub images: Vec<(OffsetDateTime, ImageState)>,
    /// The terminal event, if the job has ended.
    pub terminal: Option<Event>,
    /// Whether the job was purged: then nothing else is known.
    pub is_purged: bool,
}

impl Store {
    /// Reads the history of a job; `None` if it is not known.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_job_history(&self, job_id: Uuid) -> Result<Option<JobHistory>, StoreError> {
        async {
            let doing = "read the history of a job";
            let known = job::Column::Status.ne(JobState::Cancelled.as_str());
            let row = job::Entity::find_by_id(job_id).filter(known).one(&self.db).with_timeout(doing).await?;
            let Some(row) = row else { return Ok(None) };
            let rows = asset::read_images(&self.db, job_id).with_timeout(doing).await?;
            let mut images: Vec<_> = rows.iter().map(|image| (image.updated_at, image.state())).collect();
            images.retain(|(_, state)| !matches!(state, ImageState::Untried));
            images.sort_by_key(|(updated_at, _)| *updated_at);
            Ok(Some(JobHistory {
                key: JobKey { job_id, project_id: row.project_id },
                total: u32::try_from(row.total).unwrap_or_default(),
                started_at: (row.lease_token > 0).then_some(row.created_at),
                trace: TraceContext::parse(row.trace_parent.as_deref(), None),
                images,
                terminal: terminal_event(&row).map(|terminal| terminal.event),
                is_purged: row.status == JobState::Purged.as_str(),
            }))
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// Those of these jobs that have ended.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn find_ended_jobs(&self, job_ids: &[Uuid]) -> Result<Vec<Uuid>, StoreError> {
        job::Entity::find()
            .select_only()
            .column(job::Column::Id)
            .filter(job::Column::Id.is_in(job_ids.iter().copied()))
            .filter(job::Column::FinishedAt.is_not_null())
            .into_tuple()
            .all(&self.db)
            .with_timeout("find jobs that have ended")
            .instrument(self.operation_span("find", "jobs"))
            .await
    }

    /// A completed image of a job; `None` if there is none with this index.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn read_completed_image(&self, job_id: Uuid, index: u32) -> Result<Option<Asset>, StoreError> {
        let Ok(index) = i32::try_from(index) else { return Ok(None) };
        let row = asset::Entity::find()
            .filter(asset::Column::JobId.eq(job_id))
            .filter(asset::Column::Index.eq(index))
            .one(&self.db)
            .with_timeout("read an image")
            .instrument(self.operation_span("find", "assets"))
            .await?;
        Ok(row.and_then(|row| match row.state() {
            ImageState::Completed(asset) => Some(*asset),
            ImageState::Untried | ImageState::Failed(_) => None,
        }))
    }
}
