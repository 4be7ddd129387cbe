//! Log lines: text for people, JSON for machines, always on standard error. Each says which job and image it is about, and where in which trace it was
//! written.

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

use super::is_ours;
use crate::settings::{LogFormat, Settings};

/// Libraries whose finest lines repeat what they send, logins among it.
const TALKATIVE: [&str; 5] = ["amq_protocol", "lapin", "sea_orm", "sqlx", "hyper"];
/// Warns of every message that no queue took, with its whole body; we say so ourselves where it matters.
const RETURNED: &str = "lapin::returned_messages";
/// Tells of each batch that a collector did not take; we say so ourselves, once.
const EXPORTERS: &str = "opentelemetry";

/// The spans whose fields stand in every line below them.
const CONTEXT: [&str; 2] = ["job", "image"];
/// Those fields.
pub(super) const CONTEXT_FIELDS: [&str; 3] = ["job.id", "project.id", "image.index"];

/// Where lines go, and which.
pub(super) fn layer<S, W>(settings: &Settings, default_filter: &str, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let terminal = std::io::stderr().is_terminal();
    let filter = filter(settings.log_filter.as_deref().unwrap_or(default_filter));
    match settings.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => {
            let format = Traced(Format::default().with_ansi(terminal).with_target(false));
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
            lines.add_dynamic_field("trace_id", |_, _| place().map(|(trace_id, _)| trace_id));
            lines.add_dynamic_field("span_id", |_, _| place().map(|(_, span_id)| span_id));
            lines.with_filter(filter).boxed()
        }
    }
}

/// The lines of these directives, and the spans that say what they are about, whatever the directives.
pub(super) fn filter<S>(directives: &str) -> impl Filter<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    // The settings have checked the directives.
    let asked = EnvFilter::new(directives);
    let harmless: FilterFn = filter_fn(is_harmless);
    let context: FilterFn =
        filter_fn(|metadata| metadata.is_span() && is_ours(metadata) && CONTEXT.contains(&metadata.name()));
    asked.and(harmless).or(context)
}

/// Whether it is a line that cannot hold what must not be logged, whatever `RUST_LOG` asks for.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let fine = *metadata.level() > Level::INFO;
    let told_in_full = fine && TALKATIVE.iter().any(|library| target.starts_with(library));
    metadata.is_event() && !told_in_full && !target.starts_with(RETURNED) && !target.starts_with(EXPORTERS)
}

/// Ids of the trace and of the span in it that the program is at.
fn place() -> Option<(String, String)> {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| (span.trace_id().to_string(), span.span_id().to_string()))
}

/// Lines for people, with the ids of trace and span at their end.
struct Traced(Format);

impl<S, N> FormatEvent<S, N> for Traced
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some((trace_id, span_id)) = place() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{} trace_id={trace_id} span_id={span_id}", line.trim_end())
    }
}
