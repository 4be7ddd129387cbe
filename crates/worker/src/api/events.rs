//! The call that streams the events of a job.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event as Message, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use domain::event::{Event, EventContext};
use domain::outcome::{ImageState, Tally};
use futures_util::{StreamExt, stream};
use store::JobHistory;
use time::OffsetDateTime;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tracing::warn;
use uuid::Uuid;

use super::Api;
use super::event_feed::News;
use super::jobs::{purged_job, unknown_job};
use super::problem::{Problem, ProblemCode};
use super::request::{JobId, NoQuery};
use crate::error_chain::error_chain;

/// Interval of comments that keep the connection open, and show that the client is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that wait for a slow client; more wait in the feed, and then in the database.
const SEND_BUFFER: usize = 16;
/// Delay before the database is read again after an error.
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// Watch a job
///
/// Server-sent events: those that happened before, rebuilt from the database, then those that happen, until the terminal
/// event, after which the stream ends. Each has the id, type and body of the CloudEvent. With `Last-Event-ID`, events that
/// were published before that one are left out; some failures may be sent again.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job_id}/events",
    params(
        ("job_id" = String, Path, description = "Id of the job", format = "uuid"),
        ("Last-Event-ID" = Option<String>, Header, description = "Id of the last event that was received"),
    ),
    responses(
        (status = 200, description = "The events", content_type = "text/event-stream"),
        (status = 204, description = "`Last-Event-ID` is the terminal event: nothing follows"),
        (status = 404, description = "The job is not known", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
        (status = 410, description = "The job was purged", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "jobs",
)]
pub(super) async fn watch_job(
    api: Api,
    JobId(job_id): JobId,
    _query: NoQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let busy = || Problem::new(ProblemCode::Busy, "too many event streams are open").retry_after(5);
    let permit = api.streams.clone().try_acquire_owned().map_err(|_| busy())?;
    // Watched before the database is read, so that no event falls in between.
    let watch = api.feed.watch(job_id);
    let history = api.store.read_job_history(job_id).await?.ok_or_else(|| unknown_job(job_id))?;
    if history.is_purged {
        return Err(purged_job(job_id));
    }
    let last_id = headers.get("last-event-id").and_then(|id| Uuid::try_parse(id.to_str().ok()?).ok());
    if last_id.is_some() && last_id == history.terminal.as_ref().map(|event| event.id) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let (sender, receiver) = mpsc::channel(SEND_BUFFER);
    let mut progress = Progress { sent: HashSet::new(), sender };
    if let Some(last_id) = last_id {
        progress.sent = received_before(&past_events(&history), last_id);
    }
    let messages = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Message>| {
        receiver.recv().await.map(|message| (Ok::<_, Infallible>(message), receiver))
    });
    // Runs only while the connection takes messages, and ends with it.
    let sending = stream::once(send_events(api, job_id, watch, history, progress, permit));
    let messages = stream::select(messages, sending.filter_map(async |()| None));
    let mut response = Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Proxies such as nginx would collect the events.
    response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
    Ok(response)
}

/// What a client has received.
struct Progress {
    /// Ids of events that were sent, or that the client had before.
    sent: HashSet<Uuid>,
    sender: mpsc::Sender<Message>,
}

/// The client is gone, or has received the terminal event.
struct StreamOver;

impl Progress {
    async fn send(&mut self, id: Uuid, kind: &str, body: &str) -> Result<(), StreamOver> {
        if !self.sent.insert(id) {
            return Ok(());
        }
        let message = Message::default().id(id.to_string()).event(kind).data(body);
        self.sender.send(message).await.map_err(|_| StreamOver)
    }

    async fn send_history(&mut self, history: &JobHistory) -> Result<(), StreamOver> {
        for PastEvent { event, .. } in past_events(history) {
            self.send(event.id, event.kind.as_str(), &event.body).await?;
        }
        if history.terminal.is_some() || history.is_purged { Err(StreamOver) } else { Ok(()) }
    }
}

/// Sends what has happened and what happens, until the job has ended or the client is gone.
async fn send_events(
    api: Api,
    job_id: Uuid,
    mut watch: broadcast::Receiver<News>,
    history: JobHistory,
    mut progress: Progress,
    permit: OwnedSemaphorePermit,
) {
    let sending = async {
        progress.send_history(&history).await?;
        drop(history);
        loop {
            match watch.recv().await {
                Ok(News::Event { id, kind, body }) => progress.send(id, kind.as_str(), &body).await?,
                Ok(News::ReadDatabase) | Err(RecvError::Lagged(_)) => match api.store.read_job_history(job_id).await {
                    Ok(Some(history)) => progress.send_history(&history).await?,
                    Ok(None) => return Err(StreamOver),
                    Err(error) => {
                        warn!(job.id = %job_id, error = error_chain(&error), "events of a job cannot be read; retrying");
                        tokio::time::sleep(RETRY_DELAY).await;
                    }
                },
                Err(RecvError::Closed) => return Err(StreamOver),
            }
        }
    };
    let _: Result<(), StreamOver> = tokio::select! {
        over = sending => over,
        () = api.stop.cancelled() => Ok(()),
    };
    drop(permit);
}

/// An event that happened before, and whether its place among the others is certain.
struct PastEvent {
    event: Event,
    /// A failure may have been published later than its row says: when the job ended.
    has_certain_place: bool,
}

/// Ids of events that a client has certainly received if this is the last one that it has: those that were published
/// before. Other ones may be sent again, which the client sees by their ids.
fn received_before(events: &[PastEvent], last_id: Uuid) -> HashSet<Uuid> {
    let mut received = HashSet::from([last_id]);
    let position = events.iter().position(|past| past.event.id == last_id && past.has_certain_place);
    if let Some(position) = position {
        let before = events[..position].iter().filter(|past| past.has_certain_place);
        received.extend(before.map(|past| past.event.id));
    }
    received
}

/// The events of a job, rebuilt from its rows; the terminal one byte for byte.
fn past_events(history: &JobHistory) -> Vec<PastEvent> {
    let context = |time: OffsetDateTime| EventContext { key: history.key, trace: history.trace.clone(), time };
    let mut events = Vec::new();
    // Before its first claim, a job has no events but its end.
    if let Some(started_at) = history.started_at {
        let event = Event::started(&context(started_at), history.total);
        events.push(PastEvent { event, has_certain_place: true });
        let mut states = vec![ImageState::Untried; history.total as usize];
        for (time, state) in &history.images {
            // A failure that may be retried is reported when the job ends.
            if state.is_missing() && history.terminal.is_none() {
                continue;
            }
            let (index, failure) = match state {
                ImageState::Completed(asset) => (asset.index, None),
                ImageState::Failed(failure) => (failure.index, Some(failure.code)),
                ImageState::Untried => continue,
            };
            if let Some(place) = (index as usize).checked_sub(1).and_then(|position| states.get_mut(position)) {
                *place = state.clone();
            }
            let event = Event::progress(&context(*time), index, failure, &Tally::from_images(&states));
            events.push(PastEvent { event, has_certain_place: failure.is_none() });
        }
    }
    events.extend(history.terminal.clone().map(|event| PastEvent { event, has_certain_place: true }));
    events
}
