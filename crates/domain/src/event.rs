//! The events that the worker publishes: CloudEvents 1.0 in JSON.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::command::JobKey;
use crate::failure::{ImageFailureCode, JobFailureCode};
use crate::image_spec::ImageFormat;
use crate::outcome::{Asset, ImageFailure, ImageState, Origin, Tally};
use crate::retry::RetryOrigin;
use crate::trace::TraceContext;

/// The media type of an event's body.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// The `source` of every event.
pub const SOURCE: &str = "/asset-worker";

/// The CloudEvents `specversion` of every event.
const SPEC_VERSION: &str = "1.0";
/// The `datacontenttype` of every event.
const DATA_CONTENT_TYPE: &str = "application/json";

/// The `type` of every asset.
const IMAGE_TYPE: &str = "image";

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
    pub const fn as_str(self) -> &'static str {
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JobError {
    /// The failure code, from the closed set.
    pub code: JobFailureCode,
    /// The cause in one sentence.
    pub message: String,
}

#[derive(Serialize, JsonSchema)]
struct Envelope<'a, D> {
    #[schemars(extend("const" = SPEC_VERSION))]
    specversion: &'static str,
    /// Determined by job, type and (for progress) index: consumers drop ids that they have seen.
    id: Uuid,
    #[schemars(extend("const" = SOURCE))]
    source: &'static str,
    /// The kind of the event, which is also the routing key.
    #[serde(rename = "type")]
    kind: &'static str,
    /// `projects/{project_id}/jobs/{job_id}`.
    subject: String,
    /// When it happened, by RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    time: String,
    #[schemars(extend("const" = DATA_CONTENT_TYPE))]
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

#[derive(Serialize, JsonSchema)]
struct StartedData {
    job_id: Uuid,
    project_id: i64,
    /// Number of images that the command requests.
    total: u32,
}

#[derive(Serialize, JsonSchema)]
struct ProgressData {
    job_id: Uuid,
    project_id: i64,
    /// Position of the description in the command, from 1.
    index: u32,
    #[schemars(extend("enum" = ["completed", "failed"]))]
    status: &'static str,
    /// Why the image failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<ImageFailureCode>,
    /// Number of images that the command requests.
    total: u32,
    /// Number of completed images so far.
    succeeded: u32,
    /// Number of failed images so far.
    failed: u32,
    /// Number of completed images that come from the cache.
    from_cache: u32,
}

#[derive(Serialize, JsonSchema)]
struct AssetData<'a> {
    /// Id of the image's row.
    id: Uuid,
    /// Position of the description in the command, from 1.
    index: u32,
    /// The index in the job `retry_of`.
    #[serde(skip_serializing_if = "Option::is_none")]
    original_index: Option<u32>,
    #[serde(rename = "type")]
    #[schemars(extend("const" = IMAGE_TYPE))]
    kind: &'static str,
    #[schemars(extend("const" = "completed"))]
    status: &'static str,
    #[serde(flatten)]
    details: AssetDetails<'a>,
}

#[derive(Serialize, JsonSchema)]
struct FailureData<'a> {
    #[serde(flatten)]
    failure: &'a ImageFailure,
    /// The index in the job `retry_of`.
    #[serde(skip_serializing_if = "Option::is_none")]
    original_index: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
struct AssetDetails<'a> {
    /// Path of the file, relative to the storage root.
    file_path: &'a str,
    /// URI under which the file can be opened.
    uri: &'a str,
    /// Width in pixels.
    width: u32,
    /// Height in pixels.
    height: u32,
    #[schemars(with = "ImageFormat")]
    format: &'static str,
    /// Size of the file, in bytes.
    size_bytes: u64,
    /// SHA-256 of the file, in lower-case hex.
    sha256: &'a str,
    /// The description in the command.
    description: &'a str,
    /// The prompt that was sent to the API.
    prompt: &'a str,
    /// The seed that the API used.
    seed: u32,
    #[schemars(with = "Origin")]
    origin: &'static str,
}

impl<'a> AssetData<'a> {
    fn new(asset: &'a Asset, original_index: Option<u32>) -> Self {
        Self {
            id: asset.id,
            index: asset.index,
            original_index,
            kind: IMAGE_TYPE,
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

#[derive(Serialize, JsonSchema)]
struct TerminalData<'a> {
    job_id: Uuid,
    project_id: i64,
    /// The job whose images this one makes again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_of: Option<Uuid>,
    /// Number of images that the command requests.
    total: u32,
    /// Number of completed images.
    succeeded: u32,
    /// Number of failed images.
    failed: u32,
    /// Number of completed images that come from the cache.
    from_cache: u32,
    /// `succeeded` divided by `total`.
    success_rate: f64,
    /// The completed images, by index.
    assets: Vec<AssetData<'a>>,
    /// The failed images, by index.
    failures: Vec<FailureData<'a>>,
    /// Cost of the job's requests, in US dollars.
    cost_usd: f64,
    /// Time from the first claim to the end of the job, in milliseconds.
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
            specversion: SPEC_VERSION,
            id,
            source: SOURCE,
            kind: kind.as_str(),
            subject: format!("projects/{project_id}/jobs/{job_id}"),
            time: context.time.format(&Rfc3339).expect("a UTC time can be formatted as RFC 3339"),
            datacontenttype: DATA_CONTENT_TYPE,
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

/// The schema of the body of events of this kind.
pub(crate) fn body_schema(kind: EventKind, generator: SchemaGenerator) -> Schema {
    let mut schema = match kind {
        EventKind::Started => generator.into_root_schema_for::<Envelope<'_, StartedData>>(),
        EventKind::Progress => generator.into_root_schema_for::<Envelope<'_, ProgressData>>(),
        EventKind::Completed | EventKind::Failed => generator.into_root_schema_for::<Envelope<'_, TerminalData<'_>>>(),
    };
    if let Some(kind_schema) = schema.pointer_mut("/properties/type") {
        *kind_schema = json_schema!({ "const": kind.as_str() }).to_value();
    }
    match kind {
        EventKind::Started | EventKind::Progress => {}
        // Only a job that failed has an error.
        EventKind::Completed => {
            if let Some(Value::Object(keys)) = schema.pointer_mut("/properties/data/properties") {
                keys.remove("error");
            }
        }
        EventKind::Failed => {
            if let Some(Value::Array(keys)) = schema.pointer_mut("/properties/data/required") {
                keys.push("error".into());
            }
        }
    }
    schema
}

fn round_to_digits(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests;
