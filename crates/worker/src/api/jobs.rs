//! Calls for jobs: submit, list, show, cancel, make images again.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::PublisherState;
use domain::cancel_request::CancelRequest;
use domain::command::Command;
use domain::retry::Retry;
use domain::state::JobState;
use domain::trace::TraceContext;
use schemars::JsonSchema;
use serde::Serialize;
use store::{JobCursor, JobFilter, JobReport, Submission};
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing::{info, warn};
use uuid::Uuid;

use super::access::Caller;
use super::problem::{Problem, ProblemCode};
use super::request::{JobId, NoQuery, Query, SMALL_BODY_BYTES, read_body, read_command, read_fields};
use super::{Api, json_response};
use crate::failpoint;
use crate::retry::{self, RetryError, Selection};
use crate::submission::{publish_command, sweep_due_at};

/// How long a call waits until the command is published.
const PUBLISH_WAIT: Duration = Duration::from_secs(2);
/// Number of jobs in a page of a list if the call does not say.
const DEFAULT_PAGE: u64 = 50;
/// Maximum number of jobs in a page.
const MAX_PAGE: u64 = 500;
/// The states by which jobs are listed.
const LISTED_STATES: [&str; 4] = ["waiting", "running", "completed", "failed"];

/// What became of a submitted command.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SubmittedJob {
    /// The job's id.
    job_id: Uuid,
    /// Whether this call has made the job known. Otherwise an equal command was submitted before.
    is_new: bool,
}

/// A page of a list of jobs.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct JobPage {
    /// The jobs, newest first, without their images.
    jobs: Vec<JobReport>,
    /// The value of `cursor` for the next page; null on the last one.
    next_cursor: Option<String>,
}

/// What became of a request to cancel a job.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct CancelledJob {
    /// The job's id.
    job_id: Uuid,
    /// `cancelled`: it ends; `remembered`: it is not known, and ends when its command arrives; `unchanged`: it has ended
    /// or was cancelled before.
    #[schemars(extend("enum" = ["cancelled", "remembered", "unchanged"]))]
    outcome: &'static str,
}

/// A job that makes images of another one again.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RetriedJob {
    /// The id of the new job.
    job_id: Uuid,
    /// The job whose images it makes again.
    retry_of: Uuid,
    /// The indexes of these images in that job.
    images: Vec<u32>,
    /// Whether this call has made the job known. Otherwise it was submitted before, and may have ended.
    is_new: bool,
}

/// Submit a job
///
/// The rows of the job are written before its command is published. An equal command has no effect.
#[utoipa::path(
    put,
    path = "/v1/jobs/{job_id}",
    params(("job_id" = String, Path, description = "Id of the job: the idempotency key", format = "uuid")),
    request_body(content = ref("#/components/schemas/SubmittedCommand"), content_type = "application/json"),
    responses(
        (status = 202, description = "The job is accepted", body = ref("#/components/schemas/SubmittedJob"), content_type = "application/json"),
        (status = 200, description = "The job is known, with an equal command", body = ref("#/components/schemas/SubmittedJob"), content_type = "application/json"),
        (status = 409, description = "Another command has this id", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "jobs",
)]
pub(super) async fn put_job(
    api: Api,
    Extension(caller): Extension<Caller>,
    JobId(job_id): JobId,
    _query: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (body, _memory) = read_command(&api.body_memory, &headers, body).await?;
    let command =
        Command::parse_with_id(&body, job_id, &api.rules).map_err(|invalid| Problem::invalid(&invalid.violations))?;
    let trace = trace_of(&headers);
    api.record(caller, "submit", Some(job_id), None).await?;
    failpoint::reach("before_submission").await;
    let submission = api.store.submit_job(&command, sweep_due_at(), trace.as_ref(), None).await?;
    let is_new = match submission {
        Submission::Conflict => {
            return Err(Problem::new(ProblemCode::JobIdConflict, "another command has this job id"));
        }
        Submission::New => {
            failpoint::reach("before_submitted_command").await;
            publish(&api, &command, trace).await;
            true
        }
        Submission::Waiting | Submission::Running | Submission::Ended => false,
    };
    let status = if is_new { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok(json_response(status, &SubmittedJob { job_id, is_new }))
}

/// Publishes the command of a job whose rows are written. If that fails or takes long, a sweep does it later.
async fn publish(api: &Api, command: &Command, trace: Option<TraceContext>) {
    let job_id = command.job_id;
    let ready = api.broker.get().filter(|(publisher, _)| matches!(publisher.state(), PublisherState::Ready));
    let Some((publisher, _)) = ready else {
        warn!(job.id = %job_id, "nothing can be published now; the command is published later");
        return;
    };
    let (store, command) = (api.store.clone(), command.clone());
    // A task of its own: a confirm must be awaited to its end, also if the client has gone.
    let publishing = api.tasks.spawn(async move {
        match publish_command(&store, &publisher, &command, || trace).await {
            Ok(()) => info!(job.id = %job_id, "job submitted"),
            Err(error) => warn!(job.id = %job_id, %error, "a command could not be published; it is published later"),
        }
    });
    // The job is accepted either way.
    let _ = timeout(PUBLISH_WAIT, publishing).await;
}

/// The trace of the caller, by W3C Trace Context.
fn trace_of(headers: &HeaderMap) -> Option<TraceContext> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    TraceContext::parse(header("traceparent"), header("tracestate"))
}

/// List jobs
///
/// Newest first, in pages. A job that starts while the pages are read moves to the front.
#[utoipa::path(
    get,
    path = "/v1/jobs",
    params(
        ("project_id" = Option<i64>, Query, description = "Only jobs of this project", minimum = 1),
        ("status" = Option<String>, Query, description = "Only jobs in this state: waiting, running, completed or failed"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("limit" = Option<u32>, Query, description = "Maximum number of jobs, 50 by default", minimum = 1, maximum = 500),
    ),
    responses((status = 200, description = "A page of jobs", body = ref("#/components/schemas/JobPage"), content_type = "application/json")),
    tag = "jobs",
)]
pub(super) async fn list_jobs(api: Api, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["project_id", "status", "cursor", "limit"])?;
    let project_id = query
        .get("project_id", "a whole number of at least 1", |text| text.parse::<i64>().ok().filter(|id| *id > 0))?;
    let status = query.get("status", &format!("one of {}", LISTED_STATES.join(", ")), |text| {
        LISTED_STATES.contains(&text).then(|| text.to_owned())
    })?;
    let cursor = query.get("cursor", "the next_cursor of a page", parse_cursor)?;
    let limit = query.get("limit", &format!("a whole number from 1 to {MAX_PAGE}"), |text| {
        text.parse::<u64>().ok().filter(|limit| (1..=MAX_PAGE).contains(limit))
    })?;
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    let filter = JobFilter { project_id, status, since: None };
    // One more than asked for tells whether there is another page.
    let mut jobs = api.store.read_jobs_page(&filter, cursor, limit + 1).await?;
    let has_more = jobs.len() as u64 > limit;
    jobs.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let next_cursor = jobs.last().filter(|_| has_more).map(|job| format_cursor(job.cursor()));
    Ok(json_response(StatusCode::OK, &JobPage { jobs, next_cursor }))
}

fn format_cursor(JobCursor { created_at, job_id }: JobCursor) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}.{}", created_at.unix_timestamp_nanos(), job_id.simple()))
}

fn parse_cursor(text: &str) -> Option<JobCursor> {
    let decoded = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let (nanos, job_id) = decoded.split_once('.')?;
    let created_at = OffsetDateTime::from_unix_timestamp_nanos(nanos.parse().ok()?).ok()?;
    // Databases do not take years with a sign.
    let created_at = Some(created_at).filter(|time| (1..=9_998).contains(&time.year()))?;
    Some(JobCursor { created_at, job_id: Uuid::try_parse(job_id).ok()? })
}

/// Show a job with its images
#[utoipa::path(
    get,
    path = "/v1/jobs/{job_id}",
    params(("job_id" = String, Path, description = "Id of the job", format = "uuid")),
    responses(
        (status = 200, description = "The job", body = ref("#/components/schemas/JobReport"), content_type = "application/json"),
        (status = 404, description = "The job is not known", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
        (status = 410, description = "The job was purged", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "jobs",
)]
pub(super) async fn show_job(api: Api, JobId(job_id): JobId, _query: NoQuery) -> Result<Response, Problem> {
    match api.store.read_job_report(job_id).await? {
        Some(job) if job.status == JobState::Purged.as_str() => Err(purged_job(job_id)),
        // Of a remembered cancellation, the job is not known.
        Some(job) if job.status != JobState::Cancelled.as_str() => Ok(json_response(StatusCode::OK, &job)),
        Some(_) | None => Err(unknown_job(job_id)),
    }
}

pub(super) fn purged_job(job_id: Uuid) -> Problem {
    Problem::new(ProblemCode::Purged, format!("job {job_id} was purged"))
}

pub(super) fn unknown_job(job_id: Uuid) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("job {job_id} is not known"))
}

/// Cancel a job
///
/// Nothing more is paid for; requests in flight finish. The cancellation of a job that is not known is remembered for 30
/// days.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job_id}/cancel",
    params(("job_id" = String, Path, description = "Id of the job", format = "uuid")),
    request_body(content = ref("#/components/schemas/CancelBody"), content_type = "application/json"),
    responses((status = 202, description = "The cancellation is recorded", body = ref("#/components/schemas/CancelledJob"), content_type = "application/json")),
    tag = "jobs",
)]
pub(super) async fn cancel_job(
    api: Api,
    Extension(caller): Extension<Caller>,
    JobId(job_id): JobId,
    _query: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, SMALL_BODY_BYTES).await?;
    let body = if body.is_empty() { "{}".into() } else { body };
    let CancelRequest { reason, .. } =
        CancelRequest::parse_with_id(&body, job_id).map_err(|invalid| Problem::invalid(&invalid.violations))?;
    api.record(caller, "cancel", Some(job_id), reason.clone()).await?;
    let result = api.store.cancel_jobs(&[job_id], reason.as_deref()).await?;
    let outcome = match (result.cancelled, result.remembered) {
        (1.., _) => "cancelled",
        (0, 1..) => "remembered",
        (0, 0) => "unchanged",
    };
    Ok(json_response(StatusCode::ACCEPTED, &CancelledJob { job_id, outcome }))
}

/// Make the failed images of an ended job again
///
/// As a new job, whose id follows from this one and the number of its ended retries plus one: a repetition has no effect
/// until the new job has ended.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job_id}/retry",
    params(("job_id" = String, Path, description = "Id of the job", format = "uuid")),
    request_body(content = ref("#/components/schemas/RetryBody"), content_type = "application/json"),
    responses(
        (status = 202, description = "The new job is accepted", body = ref("#/components/schemas/RetriedJob"), content_type = "application/json"),
        (status = 200, description = "The new job was accepted before", body = ref("#/components/schemas/RetriedJob"), content_type = "application/json"),
        (status = 404, description = "The job is not known", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
        (status = 409, description = "The job has not ended, or has no failed images", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "jobs",
)]
pub(super) async fn retry_job(
    api: Api,
    Extension(caller): Extension<Caller>,
    JobId(job_id): JobId,
    _query: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let include_refused = read_fields(&headers, body, |fields| fields.boolean("include_refused")).await?;
    let selection = Selection::Failed { include_refused: include_refused.unwrap_or(false) };
    api.record(caller, "retry", Some(job_id), None).await?;
    make_again(&api, job_id, selection).await
}

/// Make a completed image of an ended job again with another seed
///
/// As a new job of one image, without the cache. A repetition with the same seed has no effect; without one it has none
/// until the new job has ended.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job_id}/redo",
    params(("job_id" = String, Path, description = "Id of the job", format = "uuid")),
    request_body(content = ref("#/components/schemas/RedoBody"), content_type = "application/json"),
    responses(
        (status = 202, description = "The new job is accepted", body = ref("#/components/schemas/RetriedJob"), content_type = "application/json"),
        (status = 200, description = "The new job was accepted before", body = ref("#/components/schemas/RetriedJob"), content_type = "application/json"),
        (status = 404, description = "The job is not known", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
        (status = 409, description = "The job has not ended, or the image is not completed", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "jobs",
)]
pub(super) async fn redo_image(
    api: Api,
    Extension(caller): Extension<Caller>,
    JobId(job_id): JobId,
    _query: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (image, seed) = read_fields(&headers, body, |fields| {
        let image = fields.integer("image", 1..=u32::MAX);
        if image.is_none() {
            fields.report_missing("image", "a whole number from 1");
        }
        (image, fields.integer("seed", 1..=u32::MAX))
    })
    .await?;
    let index = image.unwrap_or_default();
    api.record(caller, "redo", Some(job_id), Some(format!("image {index}"))).await?;
    make_again(&api, job_id, Selection::Image { index, seed }).await
}

async fn make_again(api: &Api, job_id: Uuid, selection: Selection) -> Result<Response, Problem> {
    let (Retry { command, origin, .. }, submission) =
        retry::submit_again(&api.store, api.settings.stability.engine, job_id, selection).await?;
    let is_new = submission == Submission::New;
    if is_new {
        failpoint::reach("before_submitted_command").await;
        publish(api, &command, None).await;
    }
    let body =
        RetriedJob { job_id: command.job_id, retry_of: origin.retry_of, images: origin.original_indexes, is_new };
    Ok(json_response(if is_new { StatusCode::ACCEPTED } else { StatusCode::OK }, &body))
}

impl From<RetryError> for Problem {
    fn from(error: RetryError) -> Self {
        let text = error.to_string();
        match error {
            RetryError::UnknownJob(_) => Self::new(ProblemCode::NotFound, text),
            RetryError::NotEnded(_)
            | RetryError::NothingFailed(_)
            | RetryError::OnlyRefused(_)
            | RetryError::NotCompleted { .. }
            | RetryError::Conflict { .. } => Self::new(ProblemCode::WrongState, text),
            RetryError::UnknownImage { index, total, .. } => Self::invalid_field(
                "image",
                format_args!("{index} is not allowed; the job has the images 1 to {total}"),
            ),
            RetryError::InvalidSeed { seed, engine, max } => {
                Self::invalid_field("seed", format_args!("{seed} is not allowed; engine {engine} takes 1 to {max}"))
            }
            RetryError::Invalid { violations, .. } => Self::invalid(&violations),
            RetryError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_round_trips_and_others_are_refused() {
        let cursor = JobCursor {
            created_at: OffsetDateTime::from_unix_timestamp_nanos(1_760_832_000_123_456_000).expect("a time"),
            job_id: Uuid::from_u128(7),
        };
        assert_eq!(parse_cursor(&format_cursor(cursor)), Some(cursor));
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for wrong in ["", "?", &encode("1"), &encode("x.y"), &encode(&format!("-99999999999999999999.{}", Uuid::nil()))]
        {
            assert_eq!(parse_cursor(wrong), None, "{wrong}");
        }
    }
}
