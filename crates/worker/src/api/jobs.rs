//! Calls for jobs: submit, list, show.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use broker::PublisherState;
use domain::command::Command;
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
use super::request::{JobId, NoQuery, Query, read_command};
use super::{Api, json_response};
use crate::failpoint;
use crate::submission::{publish_command, sweep_due_at};

/// How long a call waits until the command is published.
const PUBLISH_WAIT: Duration = Duration::from_secs(2);
/// Number of jobs in a page of a list if the call does not say.
const DEFAULT_PAGE: u64 = 50;
/// Maximum number of jobs in a page.
const MAX_PAGE: u64 = 500;
/// The states by which jobs are listed.
pub(crate) const LISTED_STATES: [&str; 4] = ["waiting", "running", "completed", "failed"];

/// What became of a submitted command.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SubmittedJob {
    /// The job's id.
    job_id: Uuid,
    /// Whether this call has made the job known. Otherwise an equal command was submitted before.
    pub(crate) is_new: bool,
}

/// A page of a list of jobs.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct JobPage {
    /// The jobs, newest first, without their images.
    pub(crate) jobs: Vec<JobReport>,
    /// The value of `cursor` for the next page; null on the last one.
    pub(crate) next_cursor: Option<String>,
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
    let submitted = api.submit(caller, &command, trace_of(&headers)).await?;
    let status = if submitted.is_new { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok(json_response(status, &submitted))
}

impl Api {
    /// Submits a job: writes its rows, then publishes its command.
    pub(crate) async fn submit(
        &self,
        caller: Caller,
        command: &Command,
        trace: Option<TraceContext>,
    ) -> Result<SubmittedJob, Problem> {
        let job_id = command.job_id;
        self.record(caller, "submit", Some(job_id), None).await?;
        failpoint::reach("before_submission").await;
        let is_new = match self.store.submit_job(command, sweep_due_at(), trace.as_ref(), None).await? {
            Submission::Conflict => {
                return Err(Problem::new(ProblemCode::JobIdConflict, "another command has this job id"));
            }
            Submission::New => {
                failpoint::reach("before_submitted_command").await;
                self.publish(command, trace).await;
                true
            }
            Submission::Waiting | Submission::Running | Submission::Ended => false,
        };
        Ok(SubmittedJob { job_id, is_new })
    }

    /// Publishes the command of a job whose rows are written. If that fails or takes long, a sweep does it later.
    pub(super) async fn publish(&self, command: &Command, trace: Option<TraceContext>) {
        let job_id = command.job_id;
        let ready = self.broker.get().filter(|(publisher, _)| matches!(publisher.state(), PublisherState::Ready));
        let Some((publisher, _)) = ready else {
            warn!(job.id = %job_id, "nothing can be published now; the command is published later");
            return;
        };
        let (store, command) = (self.store.clone(), command.clone());
        // A task of its own: a confirm must be awaited to its end, also if the client has gone.
        let publishing = self.tasks.spawn(async move {
            match publish_command(&store, &publisher, &command, || trace).await {
                Ok(()) => info!(job.id = %job_id, "job submitted"),
                Err(error) => {
                    warn!(job.id = %job_id, %error, "a command could not be published; it is published later");
                }
            }
        });
        // The job is accepted either way.
        let _ = timeout(PUBLISH_WAIT, publishing).await;
    }

    /// The newest jobs that the filter selects after the place of `cursor`, at most `limit`.
    pub(crate) async fn list_jobs(
        &self,
        filter: &JobFilter,
        cursor: Option<JobCursor>,
        limit: u64,
    ) -> Result<JobPage, Problem> {
        // One more than asked for tells whether there is another page.
        let mut jobs = self.store.read_jobs_page(filter, cursor, limit + 1).await?;
        let has_more = jobs.len() as u64 > limit;
        jobs.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let next_cursor = jobs.last().filter(|_| has_more).map(|job| format_cursor(job.cursor()));
        Ok(JobPage { jobs, next_cursor })
    }
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
    let filter = JobFilter { project_id, status, ..JobFilter::default() };
    Ok(json_response(StatusCode::OK, &api.list_jobs(&filter, cursor, limit.unwrap_or(DEFAULT_PAGE)).await?))
}

fn format_cursor(JobCursor { created_at, job_id }: JobCursor) -> String {
    URL_SAFE_NO_PAD.encode(format!("{}.{}", created_at.unix_timestamp_nanos(), job_id.simple()))
}

/// Parses the `cursor` of a page.
pub(crate) fn parse_cursor(text: &str) -> Option<JobCursor> {
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

pub(crate) fn purged_job(job_id: Uuid) -> Problem {
    Problem::new(ProblemCode::Purged, format!("job {job_id} was purged"))
}

pub(crate) fn unknown_job(job_id: Uuid) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("job {job_id} is not known"))
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
