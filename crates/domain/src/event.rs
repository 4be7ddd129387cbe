//! What the world is told: CloudEvents 1.0 in JSON.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::command::JobKey;
use crate::failure::{ImageFailureCode, JobFailureCode};
use crate::outcome::{Asset, ImageFailure, ImageState, Tally};
use crate::trace::TraceContext;

/// The media type of an event's body.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// The `source` of every event.
pub const SOURCE: &str = "/asset-worker";

/// The namespace of event ids: an id follows from job, type and (for progress) index.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f0c_92d1_5f0e_5d3b_9a51_0e2b_7c44_a9e1);

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The job is claimed for the first time.
    Started,
    /// An image reached its end.
    Progress,
    /// The job is done.
    Completed,
    /// The job has failed.
    Failed,
}

impl EventKind {
    /// The CloudEvents `type`, which is the routing key too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "assets.generation.started",
            Self::Progress => "assets.generation.progress",
            Self::Completed => "assets.generation.completed",
            Self::Failed => "assets.generation.failed",
        }
    }

    /// Reads a `type`.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Started, Self::Progress, Self::Completed, Self::Failed].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// An event, ready to be published: its body never changes any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What kind it is.
    pub kind: EventKind,
    /// The CloudEvents `id`: a consumer drops what it has seen.
    pub id: Uuid,
    /// The trace it belongs to, as its envelope says too.
    pub trace: Option<TraceContext>,
    /// The JSON envelope.
    pub body: String,
}

/// When and about which job an event is.
#[derive(Debug, Clone)]
pub struct Context {
    /// The job.
    pub key: JobKey,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// When it happened.
    pub time: OffsetDateTime,
}

/// The numbers that a terminal event adds to its images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals {
    /// What the job's requests cost, in USD.
    pub cost_usd: f64,
    /// From the first claim to the end.
    pub duration_ms: u64,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobError {
    /// Of the closed set.
    pub code: JobFailureCode,
    /// In a sentence.
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

/// What an envelope says of its trace.
#[derive(Deserialize)]
struct Traced {
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
    #[serde(rename = "type")]
    kind: &'static str,
    status: &'static str,
    #[serde(flatten)]
    asset: AssetRest<'a>,
}

#[derive(Serialize)]
struct AssetRest<'a> {
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

impl<'a> From<&'a Asset> for AssetData<'a> {
    fn from(asset: &'a Asset) -> Self {
        Self {
            id: asset.id,
            index: asset.index,
            kind: "image",
            status: "completed",
            asset: AssetRest {
                file_path: &asset.file_path,
                uri: &asset.uri,
                width: asset.width,
                height: asset.height,
                format: asset.format.as_str(),
                size_bytes: asset.size_bytes,
                sha256: &asset.sha256,
                description: &asset.description,
                prompt: &asset.recipe.prompt,
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
    total: u32,
    succeeded: u32,
    failed: u32,
    from_cache: u32,
    success_rate: f64,
    assets: Vec<AssetData<'a>>,
    failures: Vec<&'a ImageFailure>,
    cost_usd: f64,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a JobError>,
}

impl Event {
    /// The job is claimed for the first time.
    pub fn started(context: &Context, total: u32) -> Self {
        let JobKey { job_id, project_id } = context.key;
        Self::new(context, EventKind::Started, None, StartedData { job_id, project_id, total })
    }

    /// One image reached its end; `tally` counts the job's images with it.
    pub fn progress(context: &Context, index: u32, failure: Option<ImageFailureCode>, tally: &Tally) -> Self {
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

    /// The terminal event: `completed` without an error, `failed` with one. Images are listed as they are given.
    pub fn terminal(context: &Context, images: &[ImageState], totals: Totals, error: Option<&JobError>) -> Self {
        let JobKey { job_id, project_id } = context.key;
        let tally = Tally::of(images);
        let data = TerminalData {
            job_id,
            project_id,
            total: tally.total,
            succeeded: tally.completed,
            failed: tally.failed(),
            from_cache: tally.from_cache,
            success_rate: round(tally.success_rate(), 4),
            assets: images
                .iter()
                .filter_map(|image| match image {
                    ImageState::Completed(asset) => Some(AssetData::from(asset.as_ref())),
                    ImageState::Untried | ImageState::Failed(_) => None,
                })
                .collect(),
            failures: images
                .iter()
                .filter_map(|image| match image {
                    ImageState::Failed(failure) => Some(failure),
                    ImageState::Untried | ImageState::Completed(_) => None,
                })
                .collect(),
            cost_usd: round(totals.cost_usd, 6),
            duration_ms: totals.duration_ms,
            error,
        };
        let kind = if error.is_none() { EventKind::Completed } else { EventKind::Failed };
        Self::new(context, kind, None, data)
    }

    /// An event that was published or stored before.
    pub fn stored(kind: EventKind, id: Uuid, body: String) -> Self {
        let trace = serde_json::from_str::<Traced>(&body).ok();
        let trace =
            trace.and_then(|trace| TraceContext::parse(trace.traceparent.as_deref(), trace.tracestate.as_deref()));
        Self { kind, id, trace, body }
    }

    /// The routing key on `assets.events`.
    pub fn routing_key(&self) -> &'static str {
        self.kind.as_str()
    }

    fn new(context: &Context, kind: EventKind, index: Option<u32>, data: impl Serialize) -> Self {
        let JobKey { job_id, project_id } = context.key;
        let id = event_id(job_id, kind, index);
        let envelope = Envelope {
            specversion: "1.0",
            id,
            source: SOURCE,
            kind: kind.as_str(),
            subject: format!("projects/{project_id}/jobs/{job_id}"),
            time: context.time.format(&Rfc3339).expect("a UTC time has an RFC 3339 form"),
            datacontenttype: "application/json",
            trace: context.trace.as_ref(),
            data,
        };
        let body = serde_json::to_string(&envelope).expect("an envelope of plain data serialises");
        Self { kind, id, trace: context.trace.clone(), body }
    }
}

/// The id of an event: the same job, kind and index always have the same one.
pub fn event_id(job_id: Uuid, kind: EventKind, index: Option<u32>) -> Uuid {
    let name = match index {
        None => format!("{job_id}/{}", kind.as_str()),
        Some(index) => format!("{job_id}/{}/{index}", kind.as_str()),
    };
    Uuid::new_v5(&NAMESPACE, name.as_bytes())
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests;
