//! The way of a trace through the worker: from a command's headers into its spans, and from them into events.

use std::collections::HashMap;

use domain::command::Command;
use domain::trace::TraceContext;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, Value};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes a span, which nobody has entered yet, part of the trace that something came with.
pub(crate) fn follow(span: &Span, trace: Option<&TraceContext>) {
    if let Some(trace) = trace {
        // Refused where nothing is traced.
        let _ = span.set_parent(context(trace));
    }
}

/// Points from a span to one before it.
pub(crate) fn link(span: &Span, trace: &TraceContext) {
    span.add_link(context(trace).span().span_context().clone());
}

/// The trace, and the place in it that the program is at; `None` where nothing is traced.
pub(crate) fn current() -> Option<TraceContext> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut headers);
    let header = |name: &str| headers.get(name).map(String::as_str);
    TraceContext::parse(header("traceparent"), header("tracestate"))
}

/// What a status says is for people, and may be in somebody else's words.
const MAX_DESCRIPTION_CHARS: usize = 300;

/// The span of a job; its fields stand in every line below it.
pub(crate) fn job_span(command: &Command) -> Span {
    info_span!(
        "job",
        job.id = %command.job_id,
        project.id = command.project_id,
    )
}

/// Notes something on the span that the program is in. It stands in no log line, unlike the fields of a span.
pub(crate) fn note(name: &'static str, value: impl Into<Value>) {
    Span::current().set_attribute(name, value);
}

/// Notes on the span that the program is in that it failed, and why.
pub(crate) fn failed(code: &str, description: &str) {
    failed_in(&Span::current(), code, description);
}

/// The same on another one.
pub(crate) fn failed_in(span: &Span, code: &str, description: &str) {
    span.set_attribute("error.type", code.to_owned());
    let description: String = description.chars().take(MAX_DESCRIPTION_CHARS).collect();
    span.set_status(Status::error(description));
}

fn context(trace: &TraceContext) -> Context {
    let mut headers = HashMap::from([("traceparent".to_owned(), trace.parent.as_str().to_owned())]);
    headers.extend(trace.state.as_ref().map(|state| ("tracestate".to_owned(), state.as_str().to_owned())));
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}
