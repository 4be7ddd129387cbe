//! What a claim of a command would find, read without claiming it; and how long earlier jobs took.

use domain::command::Command;
use domain::job_over::JobOver;
use domain::state::JobState;
use domain::style::Style;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QuerySelect};
use time::OffsetDateTime;
use tracing::Instrument;

use super::cancel::read_over;
use super::claim::{settled_engine, settled_style};
use super::claimed_image::claimed_images;
use super::style::resolve_style;
use super::{ClaimOptions, ClaimedImage, QueryExt, Store, StoreError, asset, job};

/// The state of a command's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownState {
    /// It is not known, or was only cancelled or submitted.
    New,
    /// A worker has claimed it, and it has not ended.
    Claimed,
    /// It has ended: its command causes no request.
    Ended,
    /// The job id belongs to another command.
    Conflict,
}

/// What a claim of a command would find.
#[derive(Debug)]
pub struct ClaimPreview {
    /// The state of the job.
    pub state: KnownState,
    /// Why nothing may be paid for: the job is cancelled or has expired.
    pub over: Option<JobOver>,
    /// The style of its images.
    pub style: Style,
    /// The name of its engine.
    pub engine: String,
    /// What its requests have cost so far, in USD.
    pub cost_usd: f64,
    /// Its images in the order of their index.
    pub images: Vec<ClaimedImage>,
}

impl ClaimPreview {
    /// The preview of a job that is not known, of a project whose style is not known.
    pub fn without_database(command: &Command, terms: ClaimOptions<'_>) -> Self {
        let style = command.config.style().or(terms.default_style.clone());
        Self::of_new_job(command, terms, style)
    }

    fn of_new_job(command: &Command, terms: ClaimOptions<'_>, style: Style) -> Self {
        let expires_at = command.config.expires_at.filter(|expires_at| *expires_at <= OffsetDateTime::now_utc());
        Self {
            state: KnownState::New,
            over: expires_at.map(JobOver::Expired),
            style,
            engine: command.config.engine.clone().unwrap_or_else(|| terms.default_engine.to_owned()),
            cost_usd: 0.0,
            images: ClaimedImage::of_new_job(command),
        }
    }
}

/// How long a completed job took.
#[derive(Debug, Clone, Copy, FromQueryResult)]
pub struct JobDuration {
    /// Number of its requests.
    pub requests: i64,
    /// When it was first claimed.
    pub created_at: OffsetDateTime,
    /// When it ended.
    pub finished_at: OffsetDateTime,
}

impl Store {
    /// Reads what [`Store::claim`] would find now. Writes nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if it cannot be read.
    pub async fn preview_claim(&self, command: &Command, terms: ClaimOptions<'_>) -> Result<ClaimPreview, StoreError> {
        async {
            let doing = "preview a job";
            let row = job::Entity::find_by_id(command.job_id).one(&self.db).with_timeout(doing).await?;
            let style = resolve_style(&self.db, command, terms.default_style).with_timeout(doing).await?;
            let new = ClaimPreview::of_new_job(command, terms, style);
            let Some(row) = row else { return Ok(new) };
            let over = read_over(&self.db, command.job_id).with_timeout(doing).await?;
            if row.status == JobState::Cancelled.as_str() {
                return Ok(ClaimPreview { over, ..new });
            }
            let images = asset::read_images(&self.db, command.job_id).with_timeout(doing).await?;
            let state = match row.status.as_str() {
                _ if row.digest != command.digest() => KnownState::Conflict,
                _ if row.terminal_event.is_some() || row.purged_at.is_some() => KnownState::Ended,
                _ if row.lease_token == 0 && row.attempts == 0 => KnownState::New,
                _ => KnownState::Claimed,
            };
            let images = claimed_images(&images, command);
            let preview = ClaimPreview { state, over, cost_usd: row.cost_usd, images, ..new };
            Ok(match state {
                KnownState::New => preview,
                KnownState::Claimed | KnownState::Ended | KnownState::Conflict => ClaimPreview {
                    style: settled_style(&row, command),
                    engine: settled_engine(&row, command),
                    ..preview
                },
            })
        }
        .instrument(self.operation_span("find", "jobs"))
        .await
    }

    /// The newest completed jobs that sent requests and needed one attempt, at most `limit`, of the newest 500 jobs.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_job_durations(&self, limit: u64) -> Result<Vec<JobDuration>, StoreError> {
        let newest = "SELECT id FROM jobs ORDER BY created_at DESC, id DESC LIMIT 500";
        job::Entity::find()
            .select_only()
            .column(job::Column::CreatedAt)
            .column(job::Column::FinishedAt)
            .expr_as(Expr::cust("(SELECT sum(requests) FROM assets WHERE assets.job_id = jobs.id)"), "requests")
            .filter(job::Column::Status.eq(JobState::Completed.as_str()))
            .filter(job::Column::Attempts.eq(0))
            .filter(job::Column::LeaseToken.eq(1))
            .filter(job::Column::CostUsd.gt(0.0))
            .filter(Expr::cust(format!("jobs.id IN ({newest})")))
            .order_by_desc(job::Column::CreatedAt)
            .limit(limit)
            .into_model()
            .all(&self.db)
            .with_timeout("read the durations of jobs")
            .instrument(self.operation_span("find", "jobs"))
            .await
    }
}
