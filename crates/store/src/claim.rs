//! Taking a job on: it is new, to be continued, held by somebody, finished, or in conflict with another of the same id.

use std::time::Duration;

use domain::command::{Command, JobKey};

use domain::event::{Event, EventKind, event_id};
use domain::failure::JobFailureCode;
use domain::outcome::ImageState;
use domain::state::{JobState, image as image_step, job as step};
use domain::style::Style;
use domain::trace::TraceContext;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, QueryOrder, TransactionTrait, TryInsertResult,
};
use time::OffsetDateTime;
use uuid::Uuid;

use tracing::Instrument;

use super::{Doing, Lease, Store, StoreError, asset, job, lease, style};

/// A terminal event as it was stored with its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalEvent {
    /// The event, byte for byte.
    pub event: Event,
    /// Whether a queue has taken it before.
    pub published: bool,
    /// Why the job failed; `None` where it completed.
    pub error: Option<JobFailureCode>,
}

impl TerminalEvent {
    /// The terminal event of a job that has just ended.
    pub fn new(event: Event, error: Option<JobFailureCode>) -> Self {
        Self { event, published: false, error }
    }
}

/// What a command's job turned out to be.
#[derive(Debug)]
pub enum Claim {
    /// It is ours to work on.
    Run(Claimed),
    /// Another worker holds its lease.
    Leased,
    /// It has ended; this is its terminal event.
    Ended(TerminalEvent),
    /// The id belongs to another command.
    Conflict,
}

/// On what terms a job is claimed.
#[derive(Debug, Clone, Copy)]
pub struct ClaimTerms<'a> {
    /// How long the lease holds unless it is renewed.
    pub lease: Duration,
    /// What a new job's images share where neither its command nor its project says so.
    pub usual_style: &'a Style,
}

/// A job that is ours to work on.
#[derive(Debug)]
pub struct Claimed {
    /// The right to work on it.
    pub lease: Lease,
    /// How often in a row its lease was lost without an image being finished.
    pub losses: u32,
    /// Nobody claimed it before.
    pub first: bool,
    /// The trace of the worker that had it last, where that traced.
    pub earlier: Option<TraceContext>,
    /// Tries that have ended.
    pub attempts: u32,
    /// When it was first claimed.
    pub created_at: OffsetDateTime,
    /// What its images share, as it was settled at the first claim.
    pub style: Style,
    /// Its images, by index.
    pub images: Vec<ClaimedImage>,
}

/// An image of a claimed job.
#[derive(Debug)]
pub struct ClaimedImage {
    /// The row's id.
    pub id: Uuid,
    /// From 1.
    pub index: u32,
    /// As the command has it.
    pub description: String,
    /// As far as it has come.
    pub state: ImageState,
    /// The path an earlier try reserved.
    pub file_path: Option<String>,
    /// Requests sent so far.
    pub requests: u32,
    /// Those of them that may have been charged.
    pub charged: u32,
}

impl Store {
    /// Claims the job of a command, making its rows where there are none. `trace` is kept with it, for whoever comes next.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn claim(
        &self,
        command: &Command,
        trace: Option<&TraceContext>,
        terms: ClaimTerms<'_>,
    ) -> Result<Claim, StoreError> {
        async {
            let transaction = self.db.begin().doing("claim a job").await?;
            let claim = claimed(&transaction, command, trace, terms).doing("claim a job").await?;
            transaction.commit().doing("claim a job").await?;
            Ok(claim)
        }
        .instrument(self.asked("claim", "jobs"))
        .await
    }

    /// Records a job that never ran as failed. Where a job of that id is known, nothing is written; its terminal event is
    /// given back if it is the one of this very command or body (as its `digest` says), so that a repeat after a crash publishes it after all.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn record_unrun(
        &self,
        key: JobKey,
        digest: String,
        code: JobFailureCode,
        message: &str,
        event: &Event,
    ) -> Result<Option<Event>, StoreError> {
        async {
            let doing = "record an invalid job";
            let now = OffsetDateTime::now_utc();
            let row = job::ActiveModel {
                id: Set(key.job_id),
                project_id: Set(key.project_id),
                status: Set(step::REFUSE.to.as_str().to_owned()),
                digest: Set(digest.clone()),
                total: Set(0),
                attempts: Set(0),
                cost_usd: Set(0.0),
                error_code: Set(Some(code.as_str().to_owned())),
                error_message: Set(Some(message.to_owned())),
                trace_parent: Set(event.trace.as_ref().map(|trace| trace.parent.as_str().to_owned())),
                terminal_type: Set(Some(event.kind.as_str().to_owned())),
                terminal_event: Set(Some(event.body.clone())),
                created_at: Set(now),
                updated_at: Set(now),
                finished_at: Set(Some(now)),
                ..Default::default()
            };
            let inserted =
                job::Entity::insert(row).on_conflict_do_nothing().exec_without_returning(&self.db).doing(doing).await?;
            if matches!(inserted, TryInsertResult::Inserted(1..)) {
                return Ok(Some(event.clone()));
            }
            let known = job::Entity::find_by_id(key.job_id).one(&self.db).doing(doing).await?;
            Ok(known
                .filter(|row| row.digest == digest)
                .and_then(|row| terminal_event(&row))
                .map(|terminal| terminal.event))
        }
        .instrument(self.asked("fail", "jobs"))
        .await
    }
}

async fn claimed(
    db: &DatabaseTransaction,
    command: &Command,
    trace: Option<&TraceContext>,
    terms: ClaimTerms<'_>,
) -> Result<Claim, DbErr> {
    let digest = command.digest();
    // The insert comes first: it takes the write lock at once, and of two claims only one inserts.
    let inserted =
        job::Entity::insert(new_job(command, &digest)).on_conflict_do_nothing().exec_without_returning(db).await?;
    let first = matches!(inserted, TryInsertResult::Inserted(1..));
    if first {
        let style = style::settled(db, command, terms.usual_style).await?;
        let style = serde_json::to_value(style).expect("a style serialises");
        job::Entity::update_many()
            .col_expr(job::Column::Style, Expr::value(style))
            .filter(job::Column::Id.eq(command.job_id))
            .exec(db)
            .await?;
        asset::Entity::insert_many(new_assets(command)).exec_without_returning(db).await?;
    }
    let row = job::Entity::find_by_id(command.job_id)
        .one(db)
        .await?
        .ok_or_else(|| DbErr::RecordNotFound(format!("job {}", command.job_id)))?;
    if row.digest != digest {
        return Ok(Claim::Conflict);
    }
    if let Some(terminal) = terminal_event(&row) {
        return Ok(Claim::Ended(terminal));
    }
    let lease = if first {
        Some(lease::opened(db, row.id, terms.lease).await?)
    } else {
        lease::taken(db, row.id, terms.lease).await?
    };
    let Some(lease) = lease else { return Ok(Claim::Leased) };
    let earlier = TraceContext::parse(row.trace_parent.as_deref(), None);
    if let Some(trace) = trace {
        job::Entity::update_many()
            .col_expr(job::Column::TraceParent, Expr::value(trace.parent.as_str()))
            .filter(job::Column::Id.eq(row.id))
            .exec(db)
            .await?;
    }
    let losses = i32::from(!first && row.status == JobState::Running.as_str()) + row.lease_losses;
    let kept = row.style.as_ref().and_then(|style| serde_json::from_value(style.clone()).ok());
    let rows = asset::Entity::find()
        .filter(asset::Column::JobId.eq(command.job_id))
        .order_by_asc(asset::Column::Index)
        .all(db)
        .await?;
    let number = |value: i32| u32::try_from(value).unwrap_or_default();
    Ok(Claim::Run(Claimed {
        lease,
        losses: number(losses),
        first,
        earlier,
        attempts: number(row.attempts),
        created_at: row.created_at,
        style: kept.unwrap_or_else(|| command.config.style()),
        images: rows
            .into_iter()
            .zip(&command.image_descriptions)
            .map(|(row, description)| ClaimedImage {
                description: description.clone(),
                id: row.id,
                index: row.number(),
                state: row.state(),
                requests: number(row.requests),
                charged: number(row.charged),
                file_path: row.file_path,
            })
            .collect(),
    }))
}

fn new_job(command: &Command, digest: &str) -> job::ActiveModel {
    let now = OffsetDateTime::now_utc();
    job::ActiveModel {
        id: Set(command.job_id),
        project_id: Set(command.project_id),
        status: Set(step::OPEN.to.as_str().to_owned()),
        digest: Set(digest.to_owned()),
        command: Set(Some(serde_json::to_value(command).expect("a command serialises"))),
        total: Set(i32::try_from(command.image_descriptions.len()).expect("a command has at most 200 images")),
        attempts: Set(0),
        cost_usd: Set(0.0),
        created_at: Set(now),
        updated_at: Set(now),
        ..Default::default()
    }
}

fn new_assets(command: &Command) -> impl Iterator<Item = asset::ActiveModel> {
    let now = OffsetDateTime::now_utc();
    (1_u32..).zip(&command.image_descriptions).map(move |(index, description)| {
        let metadata = asset::Metadata { description: description.clone(), index, ..asset::Metadata::default() };
        asset::ActiveModel {
            id: Set(Uuid::now_v7()),
            project_id: Set(command.project_id),
            job_id: Set(command.job_id),
            index: Set(i32::try_from(index).expect("a command has at most 200 images")),
            kind: Set(asset::IMAGE.to_owned()),
            status: Set(image_step::OPEN.to.as_str().to_owned()),
            metadata: Set(metadata.json()),
            requests: Set(0),
            charged: Set(0),
            created_at: Set(now),
            updated_at: Set(now),
            ..Default::default()
        }
    })
}

/// The terminal event of a job that has ended.
pub(super) fn terminal_event(row: &job::Model) -> Option<TerminalEvent> {
    let kind = EventKind::parse(row.terminal_type.as_deref()?)?;
    let event = Event::stored(kind, event_id(row.id, kind, None), row.terminal_event.clone()?);
    let error = row.error_code.as_deref().and_then(|code| code.parse().ok());
    Some(TerminalEvent { event, published: row.published_at.is_some(), error })
}
