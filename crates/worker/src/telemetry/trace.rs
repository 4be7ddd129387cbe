//! Trace context: from the headers of a command to its spans, and from the spans to the events.

use std::collections::HashMap;

use domain::command::Command;
use domain::trace::TraceContext;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes a span part of a received trace. The span must not have been entered yet.
pub(crate) fn set_parent(span: &Span, trace: Option<&TraceContext>) {
    if let Some(trace) = trace {
        // Fails only if traces are not exported.
        let _ = span.set_parent(to_otel_context(trace));
    }
}

/// Links a span to an earlier span.
pub(crate) fn add_link(span: &Span, trace: &TraceContext) {
    span.add_link(to_otel_context(trace).span().span_context().clone());
}

/// The trace context of the current span; `None` if nothing is traced.
pub(crate) fn current_context() -> Option<TraceContext> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut headers);
    let header = |name: &str| headers.get(name).map(String::as_str);
    TraceContext::parse(header("traceparent"), header("tracestate"))
}

/// Length limit of a status description, which may contain a text of another service.
const MAX_DESCRIPTION_CHARS: usize = 300;

/// The span of a job; its fields are added to every log line inside it.
pub(crate) fn job_span(command: &Command) -> Span {
    info_span!(
        "job",
        job.id = %command.job_id,
        project.id = command.project_id,
    )
}

/// Sets an attribute on the current span. Unlike span fields, attributes do not appear in log lines.
pub(crate) fn set_attribute(name: &'static str, value: impl Into<Value>) {
    Span::current().set_attribute(name, value);
}

/// Marks the current span as failed, with a code and a description.
pub(crate) fn set_error(code: &str, description: &str) {
    set_error_on(&Span::current(), code, description);
}

/// Marks a span as failed, with a code and a description.
pub(crate) fn set_error_on(span: &Span, code: &str, description: &str) {
    span.set_attribute("error.type", code.to_owned());
    let description: String = description.chars().take(MAX_DESCRIPTION_CHARS).collect();
    span.set_status(Status::error(description));
}

fn to_otel_context(trace: &TraceContext) -> Context {
    let mut headers = HashMap::from([("traceparent".to_owned(), trace.parent.as_str().to_owned())]);
    headers.extend(trace.state.as_ref().map(|state| ("tracestate".to_owned(), state.as_str().to_owned())));
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}
