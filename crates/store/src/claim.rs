//! Claiming a job: it is new, can be continued, is leased elsewhere, has ended, or its id belongs to another command.

use std::time::Duration;

use domain::command::{Command, JobKey};
use domain::event::{Event, EventKind, JobError, event_id};
use domain::failure::JobFailureCode;
use domain::job_over::JobOver;
use domain::money::MicroUsd;
use domain::outgoing::OutgoingMessage;
use domain::retry::RetryOrigin;
use domain::state::{JobState, asset as image_step, job as step};
use domain::style::Style;
use domain::trace::TraceContext;
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, QueryFilter, TransactionTrait, TryInsertResult};
use serde_json::Value;
use time::OffsetDateTime;
use tracing::Instrument;
use uuid::Uuid;

use super::cancel::read_over;
use super::claimed_image::{ClaimedImage, claimed_images};
use super::outbox::insert_messages;
use super::{Lease, QueryExt, Store, StoreError, asset, attempt, job, lease, style};

/// A terminal event as stored with its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TerminalEvent {
    /// The event, byte for byte.
    pub event: Event,
    /// Whether a queue has already received it.
    pub published: bool,
    /// Why the job failed; `None` if it completed.
    pub error: Option<JobFailureCode>,
    /// Who is told about the job beside the consumers of its events: then it may have messages in the outbox.
    pub reply: Option<Value>,
}

impl TerminalEvent {
    /// Creates the terminal event of a job that has just ended; it is not published yet.
    pub fn new(event: Event, error: Option<JobFailureCode>, reply: Option<Value>) -> Self {
        Self { event, published: false, error, reply }
    }
}

/// The result of a claim.
#[derive(Debug)]
pub enum Claim {
    /// This worker holds the job's lease now.
    Acquired(Box<ClaimedJob>),
    /// Another worker holds its lease.
    Leased,
    /// The job has ended; this is its terminal event.
    Ended(TerminalEvent),
    /// The job had ended and was purged.
    Purged,
    /// The job id belongs to another command.
    Conflict,
}

/// Options of a claim.
#[derive(Debug, Clone, Copy)]
pub struct ClaimOptions<'a> {
    /// Time after which the lease expires unless it is renewed.
    pub lease_duration: Duration,
    /// The style of a new job where neither its command nor its project sets one.
    pub default_style: &'a Style,
    /// The engine of a new job whose command names none.
    pub default_engine: &'a str,
    /// Who is told about a new job beside the consumers of its events.
    pub reply: Option<&'a Value>,
    /// Host name of this worker.
    pub worker: &'a str,
}

/// A job whose lease this worker holds.
#[derive(Debug)]
pub struct ClaimedJob {
    /// The lease of this claim.
    pub lease: Lease,
    /// Number of consecutive leases that expired without an image being completed.
    pub lease_losses: u32,
    /// Whether this is the first claim of the job.
    pub first_claim: bool,
    /// Where its images come from, if it makes images of another job again.
    pub origin: Option<RetryOrigin>,
    /// Why nothing may be paid for: the job is cancelled or has expired.
    pub over: Option<JobOver>,
    /// Who is told about it beside the consumers of its events.
    pub reply: Option<Value>,
    /// The trace of the previous claim, if it was traced.
    pub previous_trace: Option<TraceContext>,
    /// Number of attempts that have ended.
    pub attempts: u32,
    /// What its requests have cost so far, reserved ones included.
    pub cost: MicroUsd,
    /// When it was first claimed.
    pub created_at: OffsetDateTime,
    /// The style of its images, as resolved at the first claim.
    pub style: Style,
    /// The name of its engine, as resolved at the first claim.
    pub engine: String,
    /// Its images in the order of their index.
    pub images: Vec<ClaimedImage>,
}

/// The engine of jobs that were claimed before the engine was stored.
const FORMER_DEFAULT_ENGINE: &str = "stable-diffusion-xl-1024-v1-0";

impl Store {
    /// Claims the job of a command; creates its rows if there are none. `trace` is stored for the next claim.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn claim(
        &self,
        command: &Command,
        trace: Option<&TraceContext>,
        terms: ClaimOptions<'_>,
    ) -> Result<Claim, StoreError> {
        async {
            let transaction = self.db.begin().with_timeout("claim a job").await?;
            let claim = claim_in_transaction(&transaction, command, trace, terms).with_timeout("claim a job").await?;
            transaction.commit().with_timeout("claim a job").await?;
            Ok(claim)
        }
        .instrument(self.operation_span("claim", "jobs"))
        .await
    }

    /// Records a job that has no row as failed and returns its terminal event, with messages that are published before.
    ///
    /// Writes nothing if a job with this id is known. The job's stored terminal event is then returned only if
    /// its digest is the same, so that a repeat after a crash publishes the event.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn fail_unclaimed_job(&self, failed: &UnclaimedJob<'_>) -> Result<Option<TerminalEvent>, StoreError> {
        let UnclaimedJob { key, digest, error, event, reply, messages } = failed;
        async {
            let doing = "record an unclaimed job as failed";
            let now = OffsetDateTime::now_utc();
            let row = job::ActiveModel {
                id: Set(key.job_id),
                project_id: Set(key.project_id),
                status: Set(step::FAIL_UNCLAIMED.to.as_str().to_owned()),
                digest: Set((*digest).to_owned()),
                total: Set(0),
                attempts: Set(0),
                cost_usd: Set(0.0),
                error_code: Set(Some(error.code.as_str().to_owned())),
                error_message: Set(Some(error.message.clone())),
                trace_parent: Set(event.trace.as_ref().map(|trace| trace.parent.as_str().to_owned())),
                terminal_type: Set(Some(event.kind.as_str().to_owned())),
                terminal_event: Set(Some(event.body.clone())),
                created_at: Set(now),
                updated_at: Set(now),
                finished_at: Set(Some(now)),
                reply: Set(reply.cloned()),
                ..Default::default()
            };
            let transaction = self.db.begin().with_timeout(doing).await?;
            // An invalid command fails as such, also if its cancellation came first.
            job::Entity::delete_many()
                .filter(job::Column::Id.eq(key.job_id))
                .filter(job::Column::Status.eq(JobState::Cancelled.as_str()))
                .exec(&transaction)
                .with_timeout(doing)
                .await?;
            let inserted = job::Entity::insert(row)
                .on_conflict_do_nothing()
                .exec_without_returning(&transaction)
                .with_timeout(doing)
                .await?;
            if matches!(inserted, TryInsertResult::Inserted(1..)) {
                insert_messages(&transaction, key.job_id, messages).with_timeout(doing).await?;
            }
            let row = job::Entity::find_by_id(key.job_id).one(&transaction).with_timeout(doing).await?;
            transaction.commit().with_timeout(doing).await?;
            Ok(row.filter(|row| row.digest == *digest).and_then(|row| terminal_event(&row)))
        }
        .instrument(self.operation_span("fail", "jobs"))
        .await
    }
}

/// A job that fails before it was claimed.
#[derive(Debug)]
pub struct UnclaimedJob<'a> {
    /// The ids of the job and of its project.
    pub key: JobKey,
    /// The digest of its command, or of the message if that is not a valid command.
    pub digest: &'a str,
    /// Why it failed.
    pub error: &'a JobError,
    /// The terminal event.
    pub event: &'a Event,
    /// Who is told about it beside the consumers of its events.
    pub reply: Option<&'a Value>,
    /// Messages that are published before the terminal event.
    pub messages: &'a [OutgoingMessage],
}

async fn claim_in_transaction(
    db: &DatabaseTransaction,
    command: &Command,
    trace: Option<&TraceContext>,
    terms: ClaimOptions<'_>,
) -> Result<Claim, DbErr> {
    let digest = command.digest();
    // The insert comes first: it takes the write lock at once, and only one of two concurrent claims inserts.
    let inserted = job::Entity::insert(new_job_row(command, &digest, terms.reply))
        .on_conflict_do_nothing()
        .exec_without_returning(db)
        .await?;
    let inserted = matches!(inserted, TryInsertResult::Inserted(1..));
    let row = job::ActiveModel { status: NotSet, ..new_job_row(command, &digest, terms.reply) };
    let new = inserted || fill_remembered_job(db, row).await?;
    if new {
        settle_defaults(db, command, terms).await?;
        asset::Entity::insert_many(new_asset_rows(command)).exec_without_returning(db).await?;
    }
    let row = find_row(db, command.job_id).await?;
    if row.digest != digest {
        return Ok(Claim::Conflict);
    }
    if row.status == JobState::Purged.as_str() {
        return Ok(Claim::Purged);
    }
    if let Some(terminal) = terminal_event(&row) {
        return Ok(Claim::Ended(terminal));
    }
    // The rows of a submitted job are written before its command is published.
    // Attempts were counted before there were leases.
    let is_waiting = row.status == JobState::Waiting.as_str();
    let submitted = !new && is_waiting && row.lease_token == 0 && row.attempts == 0;
    if submitted {
        settle_defaults(db, command, terms).await?;
        job::Entity::update_many()
            .col_expr(job::Column::CreatedAt, Expr::value(OffsetDateTime::now_utc()))
            .col_expr(job::Column::DueAtMs, Expr::value(Option::<i64>::None))
            .filter(job::Column::Id.eq(row.id))
            .filter(job::Column::LeaseToken.eq(0))
            .exec(db)
            .await?;
    }
    let (lease, row) = if inserted {
        (lease::create_lease(db, row.id, terms.lease_duration).await?, row)
    } else {
        // The row as it is under the new lease: before, its last holder may have changed it.
        let Some(row) = lease::acquire_lease(db, row.id, terms.lease_duration).await? else {
            return Ok(Claim::Leased);
        };
        (Lease { job_id: row.id, token: row.lease_token }, row)
    };
    attempt::insert(db, lease, terms.worker).await?;
    let over =
        if row.cancelled_at.is_some() || row.expires_at_ms.is_some() { read_over(db, row.id).await? } else { None };
    let previous_trace = TraceContext::parse(row.trace_parent.as_deref(), None);
    if let Some(trace) = trace {
        job::Entity::update_many()
            .col_expr(job::Column::TraceParent, Expr::value(trace.parent.as_str()))
            .filter(job::Column::Id.eq(row.id))
            .exec(db)
            .await?;
    }
    let rows = asset::read_images(db, command.job_id).await?;
    let to_u32 = |value: i32| u32::try_from(value).unwrap_or_default();
    Ok(Claim::Acquired(Box::new(ClaimedJob {
        lease,
        lease_losses: to_u32(row.lease_losses),
        first_claim: new || submitted,
        origin: retry_origin(&row, &rows),
        over,
        reply: row.reply.clone(),
        previous_trace,
        attempts: to_u32(row.attempts),
        cost: MicroUsd::from_usd(row.cost_usd),
        created_at: row.created_at,
        style: settled_style(&row, command),
        engine: settled_engine(&row, command),
        images: claimed_images(&rows, command),
    })))
}

/// The style of a job that was claimed.
pub(super) fn settled_style(row: &job::Model, command: &Command) -> Style {
    let stored = row.style.as_ref().and_then(|style| serde_json::from_value(style.clone()).ok());
    stored.unwrap_or_else(|| command.config.style())
}

/// The name of the engine of a job that was claimed.
pub(super) fn settled_engine(row: &job::Model, command: &Command) -> String {
    let engine = row.engine.clone().or_else(|| command.config.engine.clone());
    engine.unwrap_or_else(|| FORMER_DEFAULT_ENGINE.to_owned())
}

async fn find_row(db: &DatabaseTransaction, job_id: Uuid) -> Result<job::Model, DbErr> {
    let row = job::Entity::find_by_id(job_id).one(db).await?;
    row.ok_or_else(|| DbErr::RecordNotFound(format!("job {job_id}")))
}

/// Where the images of a job come from, if it makes images of another one again.
pub(super) fn retry_origin(row: &job::Model, images: &[asset::Model]) -> Option<RetryOrigin> {
    let original_index = |image: &asset::Model| u32::try_from(image.original_index?).ok();
    Some(RetryOrigin { retry_of: row.retry_of?, original_indexes: images.iter().filter_map(original_index).collect() })
}

/// Settles the style and the engine of a job when it is first claimed.
async fn settle_defaults(db: &DatabaseTransaction, command: &Command, terms: ClaimOptions<'_>) -> Result<(), DbErr> {
    let style = style::resolve_style(db, command, terms.default_style).await?;
    let style = serde_json::to_value(style).expect("a style is serializable");
    let engine = command.config.engine.as_deref().unwrap_or(terms.default_engine);
    job::Entity::update_many()
        .col_expr(job::Column::Style, Expr::value(style))
        .col_expr(job::Column::Engine, Expr::value(engine))
        .filter(job::Column::Id.eq(command.job_id))
        // Not of a job that another worker has claimed meanwhile.
        .filter(job::Column::LeaseToken.eq(0))
        .exec(db)
        .await
        .map(drop)
}

pub(super) fn new_job_row(command: &Command, digest: &str, reply: Option<&Value>) -> job::ActiveModel {
    let now = OffsetDateTime::now_utc();
    job::ActiveModel {
        id: Set(command.job_id),
        project_id: Set(command.project_id),
        status: Set(step::CREATE.to.as_str().to_owned()),
        digest: Set(digest.to_owned()),
        command: Set(Some(serde_json::to_value(command).expect("a command is serializable"))),
        total: Set(i32::try_from(command.image_descriptions.len()).expect("a command has at most 200 images")),
        attempts: Set(0),
        cost_usd: Set(0.0),
        expires_at_ms: Set(expires_at_ms(command)),
        reply: Set(reply.cloned()),
        created_at: Set(now),
        updated_at: Set(now),
        ..Default::default()
    }
}

fn expires_at_ms(command: &Command) -> Option<i64> {
    let ms = command.config.expires_at?.unix_timestamp_nanos() / 1_000_000;
    Some(i64::try_from(ms).expect("milliseconds of a time fit into 64 bits"))
}

/// Fills the row of a job that was cancelled before its command arrived. Returns whether there was such a row.
pub(super) async fn fill_remembered_job(db: &DatabaseTransaction, row: job::ActiveModel) -> Result<bool, DbErr> {
    let id = row.id.clone().unwrap();
    let filled = job::Entity::update_many()
        .set(row)
        .filter(job::Column::Id.eq(id))
        .filter(job::Column::Status.eq(JobState::Cancelled.as_str()))
        .filter(job::Column::Digest.eq(""))
        .exec(db)
        .await?;
    Ok(filled.rows_affected == 1)
}

pub(super) fn new_asset_rows(command: &Command) -> impl Iterator<Item = asset::ActiveModel> {
    let now = OffsetDateTime::now_utc();
    (1_u32..).zip(&command.image_descriptions).map(move |(index, description)| {
        let metadata = asset::Metadata { description: description.clone(), index, ..asset::Metadata::default() };
        asset::ActiveModel {
            id: Set(Uuid::now_v7()),
            project_id: Set(command.project_id),
            job_id: Set(command.job_id),
            index: Set(i32::try_from(index).expect("a command has at most 200 images")),
            kind: Set(asset::IMAGE_TYPE.to_owned()),
            status: Set(image_step::CREATE.to.as_str().to_owned()),
            metadata: Set(metadata.to_json()),
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
    let event = Event::from_stored(kind, event_id(row.id, kind, None), row.terminal_event.clone()?);
    let error = row.error_code.as_deref().and_then(|code| code.parse().ok());
    Some(TerminalEvent { event, published: row.published_at.is_some(), error, reply: row.reply.clone() })
}
