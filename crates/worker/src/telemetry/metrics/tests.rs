//! Compares the metrics, stages and variables with `docs/telemetry.md`.

use std::path::Path;

use super::Stage;
use super::names::*;

/// Every metric with its attributes.
const METRICS: &[(MetricSpec, &[&str])] = &[
    (JOBS, &["outcome", "error.type"]),
    (JOB_DURATION, &["outcome"]),
    (SUCCESS_RATE, &[]),
    (IMAGES, &["outcome", "origin", "error.type"]),
    (STAGE_DURATION, &["stage", "error.type"]),
    (REQUESTS, &["engine", "outcome"]),
    (RETRIES, &["cause"]),
    (RATE_LIMITED, &[]),
    (QUOTA_WAIT, &[]),
    (QUOTA_LIMIT, &[]),
    (REQUESTS_IN_FLIGHT, &[]),
    (REQUESTS_LIMIT, &[]),
    (JOBS_IN_FLIGHT, &[]),
    (JOBS_LIMIT, &[]),
    (IMAGE_POOL_IN_FLIGHT, &[]),
    (IMAGE_POOL_LIMIT, &[]),
    (COST, &[]),
    (BUDGET_SPENT, &[]),
    (BUDGET_LIMIT, &[]),
    (CREDITS, &[]),
    (QUEUE_MESSAGES, &["queue"]),
    (QUEUE_CONSUMERS, &[]),
    (OLDEST_MESSAGE_AGE, &[]),
    (LEASE_LOSSES, &[]),
    (DEAD_LETTERS, &["reason"]),
    (TERMINAL_EVENTS, &["outcome"]),
    (RECONNECTS, &[]),
    (PUBLISHING_BLOCKED, &[]),
    (READY, &[]),
    (DEPENDENCY_AVAILABLE, &["dependency"]),
    (UNKNOWN_MIGRATIONS, &[]),
    (GATE_CLOSED, &["reason"]),
    (HEARTBEAT_AGE, &[]),
    (HTTP_API_READY, &[]),
    (HTTP_API_STREAMS, &[]),
    (BUILD_INFO, &["version"]),
    (
        HTTP_DURATION,
        &["http.request.method", "http.response.status_code", "server.address", "server.port", "error.type"],
    ),
    (HTTP_SERVER_DURATION, &["http.request.method", "http.response.status_code", "http.route"]),
    (GEN_AI_DURATION, &["gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "error.type"]),
    (PROCESS_DURATION, &["messaging.system", "messaging.operation.name", "messaging.destination.name", "error.type"]),
];

const STAGES: [Stage; 7] =
    [Stage::Claim, Stage::Translate, Stage::Process, Stage::Store, Stage::Record, Stage::Finalize, Stage::Publish];

/// The OpenTelemetry variables that the worker supports.
const OTEL_VARIABLES: &[&str] = &[
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_LOGS_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS_FILE",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
    "OTEL_EXPORTER_OTLP_LOGS_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
    "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_METRIC_EXPORT_INTERVAL",
];

fn read_telemetry_page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/telemetry.md"))
        .expect("docs/telemetry.md is readable")
}

/// The name in Prometheus, without the suffixes `_bucket`, `_sum` and `_count` of a histogram.
fn prometheus_name(spec: &MetricSpec) -> String {
    let name = spec.name.replace('.', "_");
    let unit = match spec.unit {
        "s" => "_seconds",
        "1" if spec.kind != InstrumentKind::Counter => "_ratio",
        _ => "",
    };
    let total = if spec.kind == InstrumentKind::Counter { "_total" } else { "" };
    format!("{name}{unit}{total}")
}

fn table_row(spec: &MetricSpec, attributes: &[&str]) -> String {
    let unit = if spec.unit.is_empty() { String::new() } else { format!("`{}`", spec.unit) };
    let kind = match spec.kind {
        InstrumentKind::Counter => "counter",
        InstrumentKind::Gauge => "gauge",
        InstrumentKind::Histogram(_) => "histogram",
    };
    let attributes: Vec<String> = attributes.iter().map(|attribute| format!("`{attribute}`")).collect();
    format!(
        "| `{}` | `{}` | {} | {unit} | {} | {} |",
        spec.name,
        prometheus_name(spec),
        kind,
        attributes.join(", "),
        spec.description
    )
}

#[test]
fn telemetry_page_lists_exactly_the_existing_metrics() {
    let page = read_telemetry_page();
    let listed: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 5).collect();
    let expected: Vec<String> = METRICS.iter().map(|(spec, attributes)| table_row(spec, attributes)).collect();
    assert_eq!(listed, expected, "docs/telemetry.md must contain these rows:\n{}\n", expected.join("\n"));
}

#[test]
fn telemetry_page_names_every_stage_and_variable() {
    let page = read_telemetry_page();
    for name in OTEL_VARIABLES.iter().copied().chain(STAGES.iter().map(|stage| stage.as_str())) {
        assert!(page.contains(&format!("`{name}`")), "docs/telemetry.md does not mention {name}");
    }
}

#[test]
fn metric_names_and_units_follow_opentelemetry_conventions() {
    for (spec, _) in METRICS {
        let letters = |c: char| c.is_ascii_lowercase() || matches!(c, '.' | '_');
        assert!(spec.name.chars().all(letters) && !spec.name.ends_with("total"), "{}", spec.name);
        assert!(
            matches!(spec.unit, "s" | "USD" | "1" | "") || spec.unit.starts_with('{'),
            "{}: {}",
            spec.name,
            spec.unit
        );
        assert!(!spec.description.is_empty());
    }
}
