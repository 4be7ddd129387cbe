//! A collector of a test's own: it takes OTLP by gRPC and by HTTP on one port, and keeps what it was sent.

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

use crate::LIMIT;

/// A running collector; it stops when this is dropped.
pub struct Collector {
    /// Where it answers, for both protocols.
    pub endpoint: String,
    seen: Seen,
    _server: JoinSet<()>,
}

/// What was sent.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Sent>>);

#[derive(Default)]
struct Sent {
    spans: Vec<Span>,
    metrics: Vec<String>,
    lines: Vec<Line>,
    headers: Vec<HeaderMap>,
}

/// A span as it was sent.
#[derive(Debug, Clone)]
pub struct Span {
    /// As hex.
    pub trace_id: String,
    /// As hex.
    pub id: String,
    /// As hex; empty where it has none.
    pub parent: String,
    /// Nanoseconds since 1970.
    pub begun: u64,
    /// As it is shown.
    pub name: String,
    /// `internal`, `client`, `producer`, `consumer`.
    pub kind: &'static str,
    /// As text.
    pub attributes: BTreeMap<String, String>,
    /// Where it failed: why.
    pub failure: Option<String>,
    /// Traces and spans that it points to, as hex.
    pub links: Vec<(String, String)>,
    /// Of whoever sent it.
    pub resource: BTreeMap<String, String>,
}

/// A log line as it was sent.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it says.
    pub body: String,
    /// As hex; empty where it has none.
    pub trace_id: String,
    /// As text.
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    /// Starts one.
    pub async fn start() -> Result<Self> {
        let seen = Seen::default();
        let grpc = tonic::service::Routes::new(
            TraceServiceServer::new(seen.clone()).accept_compressed(tonic::codec::CompressionEncoding::Gzip),
        )
        .add_service(MetricsServiceServer::new(seen.clone()))
        .add_service(LogsServiceServer::new(seen.clone()));
        let http = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .route("/v1/logs", post(lines))
            .with_state(seen.clone());
        let router = grpc.into_axum_router().merge(http);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut server = JoinSet::new();
        server.spawn(async move {
            // Ends with the task.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { endpoint, seen, _server: server })
    }

    /// Every span that was sent so far.
    pub fn spans(&self) -> Vec<Span> {
        self.seen.sent(|sent| sent.spans.clone())
    }

    /// Waits for a span of this name, and for all that was sent with it.
    pub async fn span(&self, name: &str) -> Result<Span> {
        let sent = async || self.spans().into_iter().find(|span| span.name == name);
        wait::until(&format!("a span {name:?}"), LIMIT, sent).await
    }

    /// The names of the metrics that were sent so far.
    pub fn metrics(&self) -> Vec<String> {
        self.seen.sent(|sent| sent.metrics.clone())
    }

    /// Every log line that was sent so far.
    pub fn lines(&self) -> Vec<Line> {
        self.seen.sent(|sent| sent.lines.clone())
    }

    /// The values of a header in all that was sent by HTTP or gRPC.
    pub fn headers(&self, name: &str) -> Vec<String> {
        self.seen.sent(|sent| {
            let values = sent.headers.iter().filter_map(|headers| headers.get(name)?.to_str().ok().map(str::to_owned));
            values.collect()
        })
    }
}

impl Seen {
    fn sent<T>(&self, tell: impl FnOnce(&mut Sent) -> T) -> T {
        tell(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take_spans(&self, request: ExportTraceServiceRequest) {
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.map(|resource| texts(&resource.attributes)).unwrap_or_default();
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let spans: Vec<Span> = spans.map(|span| Span::read(span, &resource)).collect();
            self.sent(|sent| sent.spans.extend(spans));
        }
    }

    fn take_metrics(&self, request: ExportMetricsServiceRequest) {
        let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        let names: Vec<String> = scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name).collect();
        self.sent(|sent| sent.metrics.extend(names));
    }

    fn take_lines(&self, request: ExportLogsServiceRequest) {
        let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
        let lines = scopes.flat_map(|scope| scope.log_records).map(|record| Line {
            body: record.body.as_ref().map(text).unwrap_or_default(),
            trace_id: hex(&record.trace_id),
            attributes: texts(&record.attributes),
        });
        let lines: Vec<Line> = lines.collect();
        self.sent(|sent| sent.lines.extend(lines));
    }
}

impl Span {
    fn read(span: Proto, resource: &BTreeMap<String, String>) -> Self {
        let kind = match span.kind() {
            SpanKind::Internal => "internal",
            SpanKind::Client => "client",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
            SpanKind::Server | SpanKind::Unspecified => "other",
        };
        let failure = span.status.filter(|status| status.code() == SpanStatus::Error).map(|status| status.message);
        Self {
            trace_id: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            begun: span.start_time_unix_nano,
            name: span.name,
            kind,
            attributes: texts(&span.attributes),
            failure,
            links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
            resource: resource.clone(),
        }
    }

    /// An attribute, which must be there.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).unwrap_or_else(|| panic!("{name} is missing in {self:?}"))
    }
}

#[tonic::async_trait]
impl TraceService for Seen {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        self.sent(|sent| sent.headers.push(headers));
        self.take_spans(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Seen {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.take_metrics(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Seen {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.take_lines(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

async fn traces(State(seen): State<Seen>, headers: HeaderMap, body: Bytes) -> Result<(), StatusCode> {
    seen.sent(|sent| sent.headers.push(headers));
    seen.take_spans(decoded(body)?);
    Ok(())
}

async fn metrics(State(seen): State<Seen>, body: Bytes) -> Result<(), StatusCode> {
    seen.take_metrics(decoded(body)?);
    Ok(())
}

async fn lines(State(seen): State<Seen>, body: Bytes) -> Result<(), StatusCode> {
    seen.take_lines(decoded(body)?);
    Ok(())
}

fn decoded<M: Message + Default>(body: Bytes) -> Result<M, StatusCode> {
    M::decode(body).map_err(|_| StatusCode::BAD_REQUEST)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text_of = |attribute: &KeyValue| attribute.value.as_ref().map(text).unwrap_or_default();
    attributes.iter().map(|attribute| (attribute.key.clone(), text_of(attribute))).collect()
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        Some(Any::DoubleValue(number)) => number.to_string(),
        Some(Any::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}
