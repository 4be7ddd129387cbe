//! Log lines as text or JSON on standard error.
//!
//! Each line carries the ids of its job and image, and of the current trace and span.

use std::fmt;
use std::io::IsTerminal;

use opentelemetry::trace::TraceContextExt;
use tracing::{Event, Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{FilterExt, FilterFn, filter_fn};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::Filter;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

use super::is_own_target;
use crate::settings::{LogFormat, Settings};

/// Libraries whose DEBUG and TRACE lines contain the data that they send, including credentials.
const VERBOSE_LIBRARIES: [&str; 5] = ["amq_protocol", "lapin", "sea_orm", "sqlx", "hyper"];
/// Target that logs every unroutable message with its whole body; the worker logs unrouted terminal events itself.
const RETURNED_MESSAGES_TARGET: &str = "lapin::returned_messages";
/// Target prefix that logs every batch that a collector did not accept; the worker logs this itself, once.
const EXPORTER_TARGET: &str = "opentelemetry";

/// Spans whose fields are added to every log line inside them.
const CONTEXT_SPANS: [&str; 2] = ["job", "image"];
/// The fields of these spans.
pub(super) const CONTEXT_FIELDS: [&str; 3] = ["job.id", "project.id", "image.index"];

/// The layer that formats, filters and writes log lines.
pub(super) fn layer<S, W>(settings: &Settings, default_filter: &str, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let terminal = std::io::stderr().is_terminal();
    let filter = filter(settings.log_filter.as_deref().unwrap_or(default_filter));
    match settings.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => {
            let format = TraceIdFormat(Format::default().with_ansi(terminal).with_target(false));
            tracing_subscriber::fmt::layer()
                .with_ansi(terminal)
                .event_format(format)
                .with_writer(writer)
                .with_filter(filter)
                .boxed()
        }
        LogFormat::Json => {
            let mut lines = json_subscriber::JsonLayer::new(writer);
            lines
                .with_timer("timestamp", tracing_subscriber::fmt::time::SystemTime)
                .with_level("level")
                .with_target("target")
                .with_top_level_flattened_span_list()
                .with_flattened_event();
            lines.add_dynamic_field("trace_id", |_, _| current_span_ids().map(|(trace_id, _)| trace_id));
            lines.add_dynamic_field("span_id", |_, _| current_span_ids().map(|(_, span_id)| span_id));
            lines.with_filter(filter).boxed()
        }
    }
}

/// Selects the log lines that match the directives, and always the spans that carry the ids of job and image.
pub(super) fn filter<S>(directives: &str) -> impl Filter<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    // The directives were validated when the settings were read.
    let requested = EnvFilter::new(directives);
    let safe: FilterFn = filter_fn(is_safe_to_log);
    let context: FilterFn =
        filter_fn(|metadata| metadata.is_span() && is_own_target(metadata) && CONTEXT_SPANS.contains(&metadata.name()));
    requested.and(safe).or(context)
}

/// Whether a log line cannot contain secrets or message bodies. Applies in addition to `RUST_LOG`.
fn is_safe_to_log(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_below_info = *metadata.level() > Level::INFO;
    let dumps_payload = is_below_info && VERBOSE_LIBRARIES.iter().any(|library| target.starts_with(library));
    metadata.is_event()
        && !dumps_payload
        && !target.starts_with(RETURNED_MESSAGES_TARGET)
        && !target.starts_with(EXPORTER_TARGET)
}

/// The ids of the current trace and span; `None` if nothing is traced.
fn current_span_ids() -> Option<(String, String)> {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string()))
}

/// Text format that appends the ids of trace and span to each line.
struct TraceIdFormat(Format);

impl<S, N> FormatEvent<S, N> for TraceIdFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some((trace_id, span_id)) = current_span_ids() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{} trace_id={trace_id} span_id={span_id}", line.trim_end())
    }
}
