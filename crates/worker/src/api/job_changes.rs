//! Calls that change jobs: cancel them, make their images again.

use axum::Extension;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use domain::cancel_request::CancelRequest;
use domain::retry::Retry;
use schemars::JsonSchema;
use serde::Serialize;
use store::{Cancellation, Submission};
use uuid::Uuid;

use super::access::Caller;
use super::problem::{Problem, ProblemCode};
use super::request::{JobId, NoQuery, SMALL_BODY_BYTES, read_body, read_fields};
use super::{Api, json_response};
use crate::failpoint;
use crate::retry::{self, RetryError, Selection};

/// What became of a request to cancel a job.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CancelledJob {
    /// The job's id.
    job_id: Uuid,
    /// `cancelled`: it ends; `remembered`: it is not known, and ends when its command arrives; `unchanged`: it has ended
    /// or was cancelled before.
    #[schemars(extend("enum" = ["cancelled", "remembered", "unchanged"]))]
    pub(crate) outcome: &'static str,
}

/// A job that makes images of another one again.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RetriedJob {
    /// The id of the new job.
    pub(crate) job_id: Uuid,
    /// The job whose images it makes again.
    retry_of: Uuid,
    /// The indexes of these images in that job.
    images: Vec<u32>,
    /// Whether this call has made the job known. Otherwise it was submitted before, and may have ended.
    pub(crate) is_new: bool,
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
    Ok(json_response(StatusCode::ACCEPTED, &api.cancel(caller, job_id, reason).await?))
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
    Ok(retried(&api.make_again(caller, job_id, selection).await?))
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
    let selection = Selection::Image { index: image.unwrap_or_default(), seed };
    Ok(retried(&api.make_again(caller, job_id, selection).await?))
}

fn retried(job: &RetriedJob) -> Response {
    json_response(if job.is_new { StatusCode::ACCEPTED } else { StatusCode::OK }, job)
}

impl Api {
    /// Cancels a job, known or not.
    pub(crate) async fn cancel(
        &self,
        caller: Caller,
        job_id: Uuid,
        reason: Option<String>,
    ) -> Result<CancelledJob, Problem> {
        let result = self.cancel_jobs(caller, &[job_id], reason).await?;
        let outcome = match (result.cancelled, result.remembered) {
            (1.., _) => "cancelled",
            (0, 1..) => "remembered",
            (0, 0) => "unchanged",
        };
        Ok(CancelledJob { job_id, outcome })
    }

    /// Cancels jobs, known or not.
    pub(crate) async fn cancel_jobs(
        &self,
        caller: Caller,
        job_ids: &[Uuid],
        reason: Option<String>,
    ) -> Result<Cancellation, Problem> {
        for job_id in job_ids {
            self.record(caller, "cancel", Some(*job_id), reason.clone()).await?;
        }
        Ok(self.store.cancel_jobs(job_ids, reason.as_deref()).await?)
    }

    /// Makes images of an ended job again, as a new job.
    pub(crate) async fn make_again(
        &self,
        caller: Caller,
        job_id: Uuid,
        selection: Selection,
    ) -> Result<RetriedJob, Problem> {
        let (action, detail) = match selection {
            Selection::Failed { .. } => ("retry", None),
            Selection::Image { index, .. } => ("redo", Some(format!("image {index}"))),
        };
        self.record(caller, action, Some(job_id), detail).await?;
        let (Retry { command, origin, .. }, submission) =
            retry::submit_again(&self.store, self.settings.stability.engine, job_id, selection).await?;
        let is_new = submission == Submission::New;
        if is_new {
            failpoint::reach("before_submitted_command").await;
            self.publish(&command, None).await;
        }
        Ok(RetriedJob { job_id: command.job_id, retry_of: origin.retry_of, images: origin.original_indexes, is_new })
    }
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
