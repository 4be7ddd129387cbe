//! The events that the worker publishes: CloudEvents 1.0 in JSON.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::command::JobKey;
use crate::failure::{ImageFailureCode, JobFailureCode};
use crate::outcome::{Asset, ImageFailure, ImageState, Tally};
use crate::retry::RetryOrigin;
use crate::trace::TraceContext;

/// The media type of an event's body.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// The `source` of every event.
pub const SOURCE: &str = "/asset-worker";

/// The namespace of event ids: an id is derived from job id, type and (for progress) index.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f0c_92d1_5f0e_5d3b_9a51_0e2b_7c44_a9e1);

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The job is claimed for the first time.
    Started,
    /// An image completed or failed.
    Progress,
    /// The job completed.
    Completed,
    /// The job failed.
    Failed,
}

impl EventKind {
    /// The CloudEvents `type`, which is also the routing key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "assets.generation.started",
            Self::Progress => "assets.generation.progress",
            Self::Completed => "assets.generation.completed",
            Self::Failed => "assets.generation.failed",
        }
    }

    /// Parses a CloudEvents `type`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Started, Self::Progress, Self::Completed, Self::Failed].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// An event that is ready to be published: its body is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The kind of the event.
    pub kind: EventKind,
    /// The CloudEvents `id`, by which consumers recognise duplicates.
    pub id: Uuid,
    /// The trace it belongs to; the envelope contains it too.
    pub trace: Option<TraceContext>,
    /// The JSON envelope.
    pub body: String,
}

/// The job, trace and time of an event.
#[derive(Debug, Clone)]
pub struct EventContext {
    /// The ids of the job and of its project.
    pub key: JobKey,
    /// The trace that the job belongs to.
    pub trace: Option<TraceContext>,
    /// When it happened.
    pub time: OffsetDateTime,
}

/// Cost and duration of a job, for its terminal event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals {
    /// The cost of the job's requests, in USD.
    pub cost_usd: f64,
    /// Time from the first claim to the end of the job, in milliseconds.
    pub duration_ms: u64,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobError {
    /// The failure code, from the closed set.
    pub code: JobFailureCode,
    /// The cause in one sentence.
    pub message: String,
}

#[derive(Serialize)]
struct Envelope<'a, D> {
    specversion: &'static str,
    id: Uuid,
    source: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    subject: String,
    time: String,
    datacontenttype: &'static str,
    #[serde(flatten)]
    trace: Option<&'a TraceContext>,
    data: D,
}

/// The trace attributes of an envelope.
#[derive(Deserialize)]
struct TraceFields {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

#[derive(Serialize)]
struct StartedData {
    job_id: Uuid,
    project_id: i64,
    total: u32,
}

#[derive(Serialize)]
struct ProgressData {
    job_id: Uuid,
    project_id: i64,
    index: u32,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<ImageFailureCode>,
    total: u32,
    succeeded: u32,
    failed: u32,
    from_cache: u32,
}

#[derive(Serialize)]
struct AssetData<'a> {
    id: Uuid,
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_index: Option<u32>,
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    #[serde(flatten)]
    details: AssetDetails<'a>,
}

#[derive(Serialize)]
struct FailureData<'a> {
    #[serde(flatten)]
    failure: &'a ImageFailure,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_index: Option<u32>,
}

#[derive(Serialize)]
struct AssetDetails<'a> {
    file_path: &'a str,
    uri: &'a str,
    width: u32,
    height: u32,
    format: &'static str,
    size_bytes: u64,
    sha256: &'a str,
    description: &'a str,
    prompt: &'a str,
    seed: u32,
    origin: &'static str,
}

impl<'a> AssetData<'a> {
    fn new(asset: &'a Asset, original_index: Option<u32>) -> Self {
        Self {
            id: asset.id,
            index: asset.index,
            original_index,
            kind: "image",
            status: "completed",
            details: AssetDetails {
                file_path: &asset.file_path,
                uri: &asset.uri,
                width: asset.width,
                height: asset.height,
                format: asset.format.as_str(),
                size_bytes: asset.size_bytes,
                sha256: &asset.sha256,
                description: &asset.description,
                prompt: &asset.params.prompt,
                seed: asset.seed,
                origin: asset.origin.as_str(),
            },
        }
    }
}

#[derive(Serialize)]
struct TerminalData<'a> {
    job_id: Uuid,
    project_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_of: Option<Uuid>,
    total: u32,
    succeeded: u32,
    failed: u32,
    from_cache: u32,
    success_rate: f64,
    assets: Vec<AssetData<'a>>,
    failures: Vec<FailureData<'a>>,
    cost_usd: f64,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a JobError>,
}

impl Event {
    /// The event for the first claim of a job with `total` images.
    pub fn started(context: &EventContext, total: u32) -> Self {
        let JobKey { job_id, project_id } = context.key;
        Self::new(context, EventKind::Started, None, StartedData { job_id, project_id, total })
    }

    /// The event for one image that completed or failed; `tally` counts the job's images, including this one.
    pub fn progress(context: &EventContext, index: u32, failure: Option<ImageFailureCode>, tally: &Tally) -> Self {
        let JobKey { job_id, project_id } = context.key;
        let data = ProgressData {
            job_id,
            project_id,
            index,
            status: if failure.is_none() { "completed" } else { "failed" },
            code: failure,
            total: tally.total,
            succeeded: tally.completed,
            failed: tally.failed(),
            from_cache: tally.from_cache,
        };
        Self::new(context, EventKind::Progress, Some(index), data)
    }

    /// The terminal event: `completed` without an error, `failed` with one. Images are listed in the given order.
    /// `origin` is set for a job that makes images of another one again.
    pub fn terminal(
        context: &EventContext,
        images: &[ImageState],
        origin: Option<&RetryOrigin>,
        totals: Totals,
        error: Option<&JobError>,
    ) -> Self {
        let original_index = |index| origin.and_then(|origin| origin.original_index(index));
        let JobKey { job_id, project_id } = context.key;
        let tally = Tally::from_images(images);
        let data = TerminalData {
            job_id,
            project_id,
            retry_of: origin.map(|origin| origin.retry_of),
            total: tally.total,
            succeeded: tally.completed,
            failed: tally.failed(),
            from_cache: tally.from_cache,
            success_rate: round_to_digits(tally.success_rate(), 4),
            assets: images
                .iter()
                .filter_map(|image| match image {
                    ImageState::Completed(asset) => Some(AssetData::new(asset, original_index(asset.index))),
                    ImageState::Untried | ImageState::Failed(_) => None,
                })
                .collect(),
            failures: images
                .iter()
                .filter_map(|image| match image {
                    ImageState::Failed(failure) => {
                        Some(FailureData { failure, original_index: original_index(failure.index) })
                    }
                    ImageState::Untried | ImageState::Completed(_) => None,
                })
                .collect(),
            cost_usd: round_to_digits(totals.cost_usd, 6),
            duration_ms: totals.duration_ms,
            error,
        };
        let kind = if error.is_none() { EventKind::Completed } else { EventKind::Failed };
        Self::new(context, kind, None, data)
    }

    /// Restores an event from its stored body; the trace is read from the body.
    pub fn from_stored(kind: EventKind, id: Uuid, body: String) -> Self {
        let trace = serde_json::from_str::<TraceFields>(&body).ok();
        let trace =
            trace.and_then(|trace| TraceContext::parse(trace.traceparent.as_deref(), trace.tracestate.as_deref()));
        Self { kind, id, trace, body }
    }

    /// The routing key on `assets.events`.
    pub fn routing_key(&self) -> &'static str {
        self.kind.as_str()
    }

    fn new(context: &EventContext, kind: EventKind, index: Option<u32>, data: impl Serialize) -> Self {
        let JobKey { job_id, project_id } = context.key;
        let id = event_id(job_id, kind, index);
        let envelope = Envelope {
            specversion: "1.0",
            id,
            source: SOURCE,
            kind: kind.as_str(),
            subject: format!("projects/{project_id}/jobs/{job_id}"),
            time: context.time.format(&Rfc3339).expect("a UTC time can be formatted as RFC 3339"),
            datacontenttype: "application/json",
            trace: context.trace.as_ref(),
            data,
        };
        let body = serde_json::to_string(&envelope).expect("an envelope is serialisable");
        Self { kind, id, trace: context.trace.clone(), body }
    }
}

/// The id of an event, derived from job id, kind and index: the same input always gives the same id.
pub fn event_id(job_id: Uuid, kind: EventKind, index: Option<u32>) -> Uuid {
    let name = match index {
        None => format!("{job_id}/{}", kind.as_str()),
        Some(index) => format!("{job_id}/{}/{index}", kind.as_str()),
    };
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

fn round_to_digits(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests;
