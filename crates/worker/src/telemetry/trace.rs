//! The way of a trace through the worker: from a command's headers into its spans, and from them into events.

use std::collections::HashMap;

use domain::command::Command;
use domain::trace::TraceContext;
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
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

/// The span of a job, with what becomes known of it on the way.
pub(crate) fn job_span(command: &Command) -> Span {
    info_span!(
        "job",
        job.id = %command.job_id,
        project.id = command.project_id,
        job.images = command.image_descriptions.len(),
        job.outcome = Empty,
        job.succeeded = Empty,
        job.failed = Empty,
        job.from_cache = Empty,
        job.cost_usd = Empty,
        job.attempt = Empty,
        "error.type" = Empty,
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// Notes on the span that the program is in that it failed, and why.
pub(crate) fn failed(code: &str, description: &str) {
    let span = Span::current();
    span.record("error.type", code);
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", description);
}

fn context(trace: &TraceContext) -> Context {
    let mut headers = HashMap::from([("traceparent".to_owned(), trace.parent.as_str().to_owned())]);
    headers.extend(trace.state.as_ref().map(|state| ("tracestate".to_owned(), state.as_str().to_owned())));
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}
