//! Calls for dead letters: list, replay, discard.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use broker::{DeadLetter, DeadLetters, Publisher};
use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::timeout;
use uuid::Uuid;

use super::access::Caller;
use super::problem::{Problem, ProblemCode};
use super::request::{NoQuery, UrlPath, not_allowed, read_fields};
use super::{Api, json_response};

/// Maximum number of dead letters that a call reads.
const MAX_READ: usize = 1_000;
/// No further dead letter is read once this many bytes are held.
const MAX_READ_BYTES: usize = 32 * 1024 * 1024;
/// How long a call waits for another one that reads dead letters.
const TURN_WAIT: Duration = Duration::from_secs(2);

/// Dead letters, oldest first.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DeadLetterList {
    dead_letters: Vec<DeadLetterView>,
    /// Whether there are more than were read: at most 1,000 are, or 32 MiB.
    has_more: bool,
}

/// A message that was dead-lettered.
#[derive(Debug, Serialize, JsonSchema)]
struct DeadLetterView {
    /// Its id, which is also that of the command line.
    id: String,
    /// The job of its body, if it can be read.
    job_id: Option<Uuid>,
    /// Why it was dead-lettered.
    reason: String,
    /// When it was.
    rejected_at: Option<String>,
    size_bytes: usize,
}

impl DeadLetterView {
    fn new(letter: &DeadLetter) -> Self {
        Self {
            id: letter.id.clone(),
            job_id: letter.job_id,
            reason: letter.reason.clone(),
            rejected_at: letter.rejected_at.clone(),
            size_bytes: letter.body.len(),
        }
    }
}

/// List dead letters
///
/// Reads the oldest 1,000 at most, and puts them back.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    responses((status = 200, description = "Dead letters, oldest first", body = ref("#/components/schemas/DeadLetterList"), content_type = "application/json")),
    tag = "dead letters",
)]
pub(super) async fn list(api: Api, _query: NoQuery) -> Result<Response, Problem> {
    let list = api
        .with_dead_letters(async |held, _| {
            let dead_letters = held.letters().iter().map(DeadLetterView::new).collect();
            Ok(DeadLetterList { dead_letters, has_more: held.has_more() })
        })
        .await?;
    Ok(json_response(StatusCode::OK, &list))
}

/// Publish a dead letter again
///
/// With its own routing key; a job that has ended stays ended.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/{id}/replay",
    params(("id" = String, Path, description = "Id of the dead letter", pattern = "^[0-9a-f]{12}$")),
    responses(
        (status = 204, description = "It is on the queue of commands again"),
        (status = 404, description = "There is no such dead letter", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "dead letters",
)]
pub(super) async fn replay(
    api: Api,
    Extension(caller): Extension<Caller>,
    UrlPath(id): UrlPath<String>,
    _query: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = dead_letter_id(id)?;
    read_fields(&headers, body, |_| ()).await?;
    require_found(api.replay(caller, std::slice::from_ref(&id)).await?, &id)
}

/// Delete a dead letter
#[utoipa::path(
    delete,
    path = "/v1/dead-letters/{id}",
    params(("id" = String, Path, description = "Id of the dead letter", pattern = "^[0-9a-f]{12}$")),
    responses(
        (status = 204, description = "It is deleted"),
        (status = 404, description = "There is no such dead letter", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "dead letters",
)]
pub(super) async fn discard(
    api: Api,
    Extension(caller): Extension<Caller>,
    UrlPath(id): UrlPath<String>,
    _query: NoQuery,
) -> Result<Response, Problem> {
    let id = dead_letter_id(id)?;
    require_found(api.discard(caller, std::slice::from_ref(&id)).await?, &id)
}

/// Checks the form of an id.
pub(crate) fn dead_letter_id(id: String) -> Result<String, Problem> {
    let is_id = id.len() == 12 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_id { Ok(id) } else { Err(not_allowed("id", &id, "12 hexadecimal digits")) }
}

fn require_found(count: usize, id: &str) -> Result<Response, Problem> {
    if count == 0 {
        return Err(Problem::new(ProblemCode::NotFound, format!("no dead letter has the id {id}")));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

impl Api {
    /// Publishes these dead letters again. Returns how many there were.
    pub(crate) async fn replay(&self, caller: Caller, ids: &[String]) -> Result<usize, Problem> {
        self.record_dead_letters(caller, "replay", ids).await?;
        self.with_dead_letters(async |held, publisher| {
            Ok(held.replay(publisher, |letter| ids.contains(&letter.id)).await?)
        })
        .await
    }

    /// Deletes these dead letters. Returns how many there were.
    pub(crate) async fn discard(&self, caller: Caller, ids: &[String]) -> Result<usize, Problem> {
        self.record_dead_letters(caller, "discard", ids).await?;
        self.with_dead_letters(async |held, _| Ok(held.discard(|letter| ids.contains(&letter.id)).await?)).await
    }

    async fn record_dead_letters(&self, caller: Caller, action: &str, ids: &[String]) -> Result<(), Problem> {
        for id in ids {
            self.record(caller, action, None, Some(format!("dead letter {id}"))).await?;
        }
        Ok(())
    }

    /// Reads dead letters, one call at a time: what one holds, another does not see.
    pub(crate) async fn with_dead_letters<T>(
        &self,
        work: impl AsyncFnOnce(&DeadLetters, &Publisher) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let (publisher, queue) =
            self.broker.get().ok_or_else(|| Problem::unavailable("the broker cannot be used; try again"))?;
        let busy = |_| Problem::new(ProblemCode::Busy, "another call reads the dead letters").retry_after(1);
        let _turn = timeout(TURN_WAIT, self.dead_letter_turn.lock()).await.map_err(busy)?;
        let held = queue.hold(MAX_READ, MAX_READ_BYTES).await?;
        let result = work(&held, &publisher).await;
        held.release().await;
        result
    }
}
