//! OpenTelemetry collector for one test: it receives OTLP by gRPC and by HTTP on one port and records it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use dev_services::wait;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as Proto;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use crate::WAIT_TIMEOUT;

/// A running collector; dropping it stops the server.
pub struct Collector {
    /// Base URL for both protocols.
    pub endpoint: String,
    recorder: Recorder,
    _server: JoinSet<()>,
}

/// Shared record of everything that was received.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Received>>);

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    metric_names: Vec<String>,
    log_records: Vec<LogRecord>,
    headers: Vec<HeaderMap>,
}

/// A received span.
#[derive(Debug, Clone)]
pub struct Span {
    /// Trace id in hex.
    pub trace_id: String,
    /// Span id in hex.
    pub id: String,
    /// Span id of the parent in hex; empty for a root span.
    pub parent_id: String,
    /// Start time in nanoseconds since the Unix epoch.
    pub start_unix_nanos: u64,
    /// Span name.
    pub name: String,
    /// Span kind: `internal`, `client`, `producer`, `consumer` or `other`.
    pub kind: &'static str,
    /// Attributes, with their values as text.
    pub attributes: BTreeMap<String, String>,
    /// Status message of a failed span.
    pub error_message: Option<String>,
    /// Trace id and span id of each link, in hex.
    pub links: Vec<(String, String)>,
    /// Resource attributes of the sender.
    pub resource: BTreeMap<String, String>,
}

/// A received log record.
#[derive(Debug, Clone)]
pub struct LogRecord {
    /// Log message.
    pub body: String,
    /// Trace id in hex; empty outside a trace.
    pub trace_id: String,
    /// Attributes, with their values as text.
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    /// Starts a collector on a free port.
    pub async fn start() -> Result<Self> {
        let seen = Recorder::default();
        let grpc = tonic::service::Routes::new(
            TraceServiceServer::new(seen.clone()).accept_compressed(tonic::codec::CompressionEncoding::Gzip),
        )
        .add_service(MetricsServiceServer::new(seen.clone()))
        .add_service(LogsServiceServer::new(seen.clone()));
        let http = Router::new()
            .route("/v1/traces", post(receive_traces))
            .route("/v1/metrics", post(receive_metrics))
            .route("/v1/logs", post(receive_logs))
            .with_state(seen.clone());
        let router = grpc.into_axum_router().merge(http);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut server = JoinSet::new();
        server.spawn(async move {
            // The server runs until its task is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { endpoint, recorder: seen, _server: server })
    }

    /// Returns all spans received so far.
    pub fn spans(&self) -> Vec<Span> {
        self.recorder.with_received(|sent| sent.spans.clone())
    }

    /// Waits for a span of this name; the spans exported with it are recorded by then.
    pub async fn wait_for_span(&self, name: &str) -> Result<Span> {
        let sent = async || self.spans().into_iter().find(|span| span.name == name);
        wait::wait_until(&format!("a span {name:?}"), WAIT_TIMEOUT, sent).await
    }

    /// Returns the names of all metrics received so far.
    pub fn metric_names(&self) -> Vec<String> {
        self.recorder.with_received(|sent| sent.metric_names.clone())
    }

    /// Returns all log records received so far.
    pub fn log_records(&self) -> Vec<LogRecord> {
        self.recorder.with_received(|sent| sent.log_records.clone())
    }

    /// Returns the values of a header in all trace exports received by HTTP or gRPC.
    pub fn header_values(&self, name: &str) -> Vec<String> {
        self.recorder.with_received(|sent| {
            let values = sent.headers.iter().filter_map(|headers| headers.get(name)?.to_str().ok().map(str::to_owned));
            values.collect()
        })
    }
}

impl Recorder {
    fn with_received<T>(&self, tell: impl FnOnce(&mut Received) -> T) -> T {
        tell(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record_spans(&self, request: ExportTraceServiceRequest) {
        for resource_spans in request.resource_spans {
            let resource =
                resource_spans.resource.map(|resource| attribute_map(&resource.attributes)).unwrap_or_default();
            let spans = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let spans: Vec<Span> = spans.map(|span| Span::from_proto(span, &resource)).collect();
            self.with_received(|sent| sent.spans.extend(spans));
        }
    }

    fn record_metrics(&self, request: ExportMetricsServiceRequest) {
        let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        let names: Vec<String> = scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name).collect();
        self.with_received(|sent| sent.metric_names.extend(names));
    }

    fn record_log_records(&self, request: ExportLogsServiceRequest) {
        let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
        let lines = scopes.flat_map(|scope| scope.log_records).map(|record| LogRecord {
            body: record.body.as_ref().map(value_to_string).unwrap_or_default(),
            trace_id: encode_hex(&record.trace_id),
            attributes: attribute_map(&record.attributes),
        });
        let lines: Vec<LogRecord> = lines.collect();
        self.with_received(|sent| sent.log_records.extend(lines));
    }
}

impl Span {
    fn from_proto(span: Proto, resource: &BTreeMap<String, String>) -> Self {
        let kind = match span.kind() {
            SpanKind::Internal => "internal",
            SpanKind::Client => "client",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
            SpanKind::Server | SpanKind::Unspecified => "other",
        };
        let error_message =
            span.status.filter(|status| status.code() == SpanStatus::Error).map(|status| status.message);
        Self {
            trace_id: encode_hex(&span.trace_id),
            id: encode_hex(&span.span_id),
            parent_id: encode_hex(&span.parent_span_id),
            start_unix_nanos: span.start_time_unix_nano,
            name: span.name,
            kind,
            attributes: attribute_map(&span.attributes),
            error_message,
            links: span.links.iter().map(|link| (encode_hex(&link.trace_id), encode_hex(&link.span_id))).collect(),
            resource: resource.clone(),
        }
    }

    /// Returns an attribute; panics if it is missing.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).unwrap_or_else(|| panic!("{name} is missing in {self:?}"))
    }
}

#[tonic::async_trait]
impl TraceService for Recorder {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.with_received(|sent| sent.headers.push(headers));
        self.record_spans(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Recorder {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.record_metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Recorder {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.record_log_records(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

async fn receive_traces(State(seen): State<Recorder>, headers: HeaderMap, body: Bytes) -> Result<(), StatusCode> {
    seen.with_received(|sent| sent.headers.push(headers));
    seen.record_spans(decode(body)?);
    Ok(())
}

async fn receive_metrics(State(seen): State<Recorder>, body: Bytes) -> Result<(), StatusCode> {
    seen.record_metrics(decode(body)?);
    Ok(())
}

async fn receive_logs(State(seen): State<Recorder>, body: Bytes) -> Result<(), StatusCode> {
    seen.record_log_records(decode(body)?);
    Ok(())
}

fn decode<M: Message + Default>(body: Bytes) -> Result<M, StatusCode> {
    M::decode(body).map_err(|_| StatusCode::BAD_REQUEST)
}

fn encode_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + format!("{byte:02x}").as_str())
}

fn attribute_map(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text_of = |attribute: &KeyValue| attribute.value.as_ref().map(value_to_string).unwrap_or_default();
    attributes.iter().map(|attribute| (attribute.key.clone(), text_of(attribute))).collect()
}

fn value_to_string(value: &AnyValue) -> String {
    match &value.value {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::DoubleValue(number)) => number.to_string(),
        Some(Any::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}
