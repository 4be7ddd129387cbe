//! Traces, log records and metrics of jobs, as received by an OTLP collector.

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Collector, Database, Span, TestEnv, WAIT_TIMEOUT, command};
use serde_json::json;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER_SPAN_ID: &str = "00f067aa0ba902b7";
const TRACE_PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const CONSUMER_DESTINATION: &str = "assets.commands:generate:assets.generate";

/// Makes the workers of an environment export to this collector with this protocol.
fn export_to_collector(env: &mut TestEnv, collector: &Collector, protocol: &str) {
    env.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.clone());
    env.set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
    env.set("OTEL_BSP_SCHEDULE_DELAY", "50");
}

/// The spans of a trace as a readable tree: kind, name and selected attributes.
struct SpanTree<'a> {
    spans: Vec<&'a Span>,
    shown_attributes: &'a [&'a str],
}

impl<'a> SpanTree<'a> {
    fn new(spans: &'a [Span], trace_id: &str, shown_attributes: &'a [&'a str]) -> Self {
        // Database spans are checked elsewhere.
        let spans =
            spans.iter().filter(|span| span.trace_id == trace_id && !span.attributes.contains_key("db.system.name"));
        Self { spans: spans.collect(), shown_attributes }
    }

    fn append_children(&self, parent: &str, depth: usize, lines: &mut Vec<String>) {
        let mut children: Vec<_> = self.spans.iter().filter(|span| span.parent_id == parent).collect();
        children.sort_by_key(|span| span.start_unix_nanos);
        for span in children {
            let values = self
                .shown_attributes
                .iter()
                .filter_map(|name| Some(format!(" {name}={}", span.attributes.get(*name)?)));
            let failed = span.error_message.as_ref().map_or("", |_| " FAILED");
            let kind = if span.kind == "internal" { String::new() } else { format!("{} ", span.kind) };
            lines.push(format!("{}{kind}{}{}{failed}", "  ".repeat(depth), span.name, values.collect::<String>()));
            self.append_children(&span.id, depth + 1, lines);
        }
    }

    fn render(&self, parent: &str) -> String {
        let mut lines = Vec::new();
        self.append_children(parent, 0, &mut lines);
        lines.join("\n")
    }
}

/// Expected span tree of the job in the next test.
fn expected_tree() -> String {
    format!(
        "consumer process {CONSUMER_DESTINATION}
  client receive {CONSUMER_DESTINATION}
  job
    claim
    producer send assets.events:assets.generation.started
    translate
    image image.index=1 image.origin=generated
      client generate_content stable-diffusion-xl-1024-v1-0
        quota wait
        client POST error.type=500 http.response.status_code=500 FAILED
        quota wait
        client POST http.response.status_code=200 http.request.resend_count=1
      process
      store
      record
      producer send assets.events:assets.generation.progress
    image image.index=2 image.origin=cache
      client generate_content stable-diffusion-xl-1024-v1-0 error.type=server FAILED
        quota wait
        client POST error.type=500 http.response.status_code=500 FAILED
        quota wait
        client POST error.type=500 http.response.status_code=500 http.request.resend_count=1 FAILED
        quota wait
        client POST error.type=500 http.response.status_code=500 http.request.resend_count=2 FAILED
        quota wait
        client POST error.type=500 http.response.status_code=500 http.request.resend_count=3 FAILED
      record
      producer send assets.events:assets.generation.progress
    image image.index=3 error.type=content_policy FAILED
      client generate_content stable-diffusion-xl-1024-v1-0 error.type=content_policy FAILED
        quota wait
        client POST error.type=400 http.response.status_code=400 FAILED
      producer send assets.events:assets.generation.progress
    finalize
    publish
      producer send assets.events:assets.generation.completed"
    )
}

/// Checks the attributes that the semantic conventions require for each kind of span.
fn check_attributes(spans: &[Span], job_id: &str) -> Result<()> {
    let span = |name: &str| {
        spans.iter().find(|span| span.trace_id == TRACE_ID && span.name == name).with_context(|| name.to_owned())
    };
    let check = |span: &Span, expected: &[(&str, &str)]| {
        for (name, value) in expected {
            assert_eq!(span.attribute(name), *value, "{name} of {}", span.name);
        }
    };
    check(
        span("job")?,
        &[
            ("job.id", job_id),
            ("project.id", "42"),
            ("job.outcome", "completed"),
            ("job.succeeded", "2"),
            ("job.failed", "1"),
            ("job.from_cache", "1"),
        ],
    );
    check(
        span(&format!("process {CONSUMER_DESTINATION}"))?,
        &[
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", CONSUMER_DESTINATION),
        ],
    );
    check(
        span("generate_content stable-diffusion-xl-1024-v1-0")?,
        &[
            ("gen_ai.operation.name", "generate_content"),
            ("gen_ai.provider.name", "stability_ai"),
            ("gen_ai.request.model", "stable-diffusion-xl-1024-v1-0"),
            ("gen_ai.output.type", "image"),
            ("server.address", "127.0.0.1"),
        ],
    );
    let post = span("POST")?;
    check(post, &[("http.request.method", "POST"), ("server.address", "127.0.0.1")]);
    assert!(post.attribute("url.full").ends_with("/v1/generation/stable-diffusion-xl-1024-v1-0/text-to-image"));
    check(
        span("send assets.events:assets.generation.completed")?,
        &[
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.type", "send"),
            ("messaging.destination.name", "assets.events:assets.generation.completed"),
        ],
    );
    let claim = span("claim")?;
    let claim_query = spans.iter().find(|span| span.parent_id == claim.id).context("the claim has no database span")?;
    assert_eq!((claim_query.name.as_str(), claim_query.kind), ("claim jobs", "client"));
    check(
        claim_query,
        &[("db.system.name", "postgresql"), ("db.operation.name", "claim"), ("db.collection.name", "jobs")],
    );
    assert!(span("job")?.resource["service.name"] == "asset-worker");
    Ok(())
}

/// One job with an image that is retried, one that comes from the cache, and one that fails.
#[tokio::test]
async fn job_is_one_trace_from_producer_span_to_events() -> Result<()> {
    let collector = Collector::start().await?;
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    export_to_collector(&mut env, &collector, "http/protobuf");
    env.set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let config = json!({"max_concurrent": 1, "min_success_rate": 0.5});
    producer.publish(&command(42, &["A bear"], &config)).await?;
    events.wait_for("completed").await?;
    env.inject_fault_times("status=500", Some(1), Some("A fox"))?;
    env.inject_fault("status=500", Some("A bear"))?;
    let job = command(42, &["A fox", "A bear", "A gory battle"], &config);
    producer.publish_traced(&job, TRACE_PARENT, "vendor=opaque").await?;
    let seen = events.wait_for("completed").await?;
    worker.signal(Signal::TERM);
    assert!(worker.wait_for_exit().await?.success());

    let spans = collector.spans();
    let shown = ["image.index", "image.origin", "error.type", "http.response.status_code", "http.request.resend_count"];
    assert_eq!(SpanTree::new(&spans, TRACE_ID, &shown).render(PRODUCER_SPAN_ID), expected_tree());

    check_attributes(&spans, job["job_id"].as_str().context("job_id is missing")?)?;
    let headers = collector.header_values("authorization");
    assert!(!headers.is_empty() && headers.iter().all(|value| value == "Bearer hunter2"), "{headers:?}");

    // The event's trace context names the span in which it was published.
    for event in &seen {
        let header = event.header("traceparent").context("traceparent is missing")?;
        assert_eq!(
            (event.json()["traceparent"].as_str(), event.header("tracestate").as_deref()),
            (Some(header.as_str()), Some("vendor=opaque"))
        );
        assert_eq!(event.json()["tracestate"], "vendor=opaque");
        let parts: Vec<&str> = header.split('-').collect();
        assert_eq!((parts[1], parts[3]), (TRACE_ID, "01"));
        assert!(
            spans.iter().any(|span| span.trace_id == TRACE_ID && span.id == parts[2]),
            "{header} names no exported span"
        );
    }
    let texts = spans.iter().flat_map(|span| span.attributes.values().chain(&span.error_message).chain([&span.name]));
    for text in texts {
        let secret = ["sk-sandbox", "hunter2", "A bear", "A fox", "gory"].iter().find(|secret| text.contains(**secret));
        assert_eq!(secret, None, "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_to_gemini_are_spans_below_the_stage_translate() -> Result<()> {
    let collector = Collector::start().await?;
    let mut env = TestEnv::new().await?;
    export_to_collector(&mut env, &collector, "grpc");
    let _gemini = env.start_gemini().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["一隻狐狸"], &json!({}))).await?;
    events.wait_for("completed").await?;
    worker.signal(Signal::TERM);
    assert!(worker.wait_for_exit().await?.success());

    let spans = collector.spans();
    let translate = spans.iter().find(|span| span.name == "translate").context("no span of the stage translate")?;
    let mut requests = spans.iter().filter(|span| span.parent_id == translate.id && span.name == "POST");
    let request = requests.next().context("no span of the request to Gemini")?;
    assert!(request.attribute("url.full").contains("/v1beta/models/"), "{}", request.attribute("url.full"));
    assert_eq!(request.attribute("http.response.status_code"), "200");
    assert_eq!(requests.count(), 0);
    Ok(())
}

/// The same job again: first after its worker was killed, then after the job had ended.
#[tokio::test]
async fn continued_or_repeated_job_links_to_previous_trace() -> Result<()> {
    let collector = Collector::start().await?;
    let mut env = TestEnv::new().await?;
    export_to_collector(&mut env, &collector, "grpc");
    env.inject_fault_times("slow=60000", Some(1), None)?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let job = command(42, &["A fox"], &json!({}));
    producer.publish_traced(&job, TRACE_PARENT, "vendor=opaque").await?;
    events.wait_for("started").await?;
    let asked = async || (env.sandbox.ledger().requests == 1).then_some(());
    wait::wait_until("a request", WAIT_TIMEOUT, asked).await?;
    worker.signal(Signal::KILL);
    drop(worker);
    let mut worker = env.start_ready_worker().await?;
    events.wait_for("completed").await?;
    let other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    producer.publish_traced(&job, other, "").await?;
    events.wait_for("completed").await?;
    worker.signal(Signal::TERM);
    assert!(worker.wait_for_exit().await?.success());

    let spans = collector.spans();
    let of = |trace_id: &str| {
        spans.iter().find(|span| span.name == "job" && span.trace_id == trace_id).context("no span of the job")
    };
    let (continued, repeated) = (of(TRACE_ID)?, of("0af7651916cd43dd8448eb211c80319c")?);
    // The killed worker's span was never exported, but the link to it is there.
    let [(trace_id, earlier)] = continued.links.as_slice() else { anyhow::bail!("{continued:?}") };
    assert_eq!(trace_id, TRACE_ID);
    assert!(*earlier != continued.id && *earlier != PRODUCER_SPAN_ID, "{continued:?}");
    assert_eq!(repeated.links, [(TRACE_ID.to_owned(), continued.id.clone())]);
    assert_eq!((repeated.attribute("job.outcome"), continued.attribute("job.outcome")), ("already_ended", "completed"));
    Ok(())
}

#[tokio::test]
async fn unsampled_trace_is_propagated_but_not_exported() -> Result<()> {
    let collector = Collector::start().await?;
    let mut env = TestEnv::new().await?;
    export_to_collector(&mut env, &collector, "grpc");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    producer.publish_traced(&command(42, &["A bear"], &json!({})), other, "").await?;
    events.wait_for("completed").await?;
    let unsampled = TRACE_PARENT.replace("-01", "-00");
    producer.publish_traced(&command(42, &["A fox"], &json!({})), &unsampled, "vendor=opaque").await?;
    let seen = events.wait_for("completed").await?;
    for event in &seen {
        let header = event.header("traceparent").context("traceparent is missing")?;
        assert!(header.starts_with(&format!("00-{TRACE_ID}-")) && header.ends_with("-00"), "{header}");
    }
    worker.signal(Signal::TERM);
    assert!(worker.wait_for_exit().await?.success());
    let spans = collector.spans();
    assert!(
        spans.iter().any(|span| span.trace_id == "0af7651916cd43dd8448eb211c80319c"),
        "the sampled trace is exported"
    );
    assert!(spans.iter().all(|span| span.trace_id != TRACE_ID), "{spans:?}");
    Ok(())
}

#[tokio::test]
async fn logs_and_metrics_are_exported_when_enabled() -> Result<()> {
    let collector = Collector::start().await?;
    let mut env = TestEnv::new().await?;
    for protocol in ["grpc", "http/protobuf"] {
        export_to_collector(&mut env, &collector, protocol);
        env.set("OTEL_LOGS_EXPORTER", "otlp");
        env.set("OTEL_SERVICE_NAME", protocol);
        let headers = env.folder().join("headers");
        std::fs::write(&headers, "authorization=Bearer%20hunter2\n")?;
        env.set("OTEL_EXPORTER_OTLP_HEADERS_FILE", headers.display().to_string());
        let mut worker = env.start_ready_worker().await?;
        let producer = env.connect_broker().await?;
        let mut events = producer.subscribe_to_events().await?;
        let job = command(42, &["A gory battle"], &json!({"min_success_rate": 0.0}));
        producer.publish_traced(&job, TRACE_PARENT, "").await?;
        events.wait_for("completed").await?;
        worker.signal(Signal::TERM);
        assert!(worker.wait_for_exit().await?.success());
        let id = job["job_id"].as_str().context("job_id is missing")?;
        let lines = collector.log_records();
        let line = lines
            .iter()
            .find(|line| line.body == "image failed" && line.attributes.get("job.id").is_some_and(|job| job == id));
        let line = line.with_context(|| format!("{lines:?}"))?;
        assert_eq!((line.trace_id.as_str(), line.attributes["image.index"].as_str()), (TRACE_ID, "1"));
        assert!(collector.spans().iter().any(|span| span.resource["service.name"] == protocol));
    }
    let headers = collector.header_values("authorization");
    assert!(headers.len() > 1 && headers.iter().all(|value| value == "Bearer hunter2"), "{headers:?}");
    let metrics = collector.metric_names();
    for name in ["asset_worker.jobs", "asset_worker.stage.duration", "gen_ai.client.operation.duration"] {
        assert!(metrics.iter().any(|metric| metric == name), "{name} is not among {metrics:?}");
    }
    Ok(())
}

#[tokio::test]
async fn job_log_lines_carry_job_id_and_trace_context() -> Result<()> {
    let collector = Collector::start().await?;
    let mut env = TestEnv::new().await?;
    export_to_collector(&mut env, &collector, "grpc");
    // A stricter log filter does not change the fields of the remaining lines.
    env.set("RUST_LOG", "warn,asset_worker::health=info");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let job = command(42, &["A gory battle"], &json!({}));
    producer.publish_traced(&job, TRACE_PARENT, "").await?;
    events.wait_for("failed").await?;
    let log = worker.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines: Vec<_> = lines.filter(|line| line["job.id"] == job["job_id"]).collect();
    let messages: Vec<_> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
    assert_eq!(messages, ["prompt refused by content policy", "image failed", "job failed"], "{log}");
    assert_eq!(lines[1]["image.index"], 1);
    let fields: Vec<_> = lines[1].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "code",
        "description",
        "image.index",
        "job.id",
        "level",
        "message",
        "name",
        "project.id",
        "reason",
        "requests",
        "span_id",
        "target",
        "timestamp",
        "trace_id",
    ];
    assert_eq!(fields, expected, "each field occurs once");
    assert!(lines.iter().all(|line| line["trace_id"] == TRACE_ID && line["span_id"].is_string()), "{lines:?}");
    Ok(())
}

/// The collector accepts every connection and never responds.
#[tokio::test]
async fn unresponsive_collector_delays_neither_jobs_nor_shutdown() -> Result<()> {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let mut env = TestEnv::new().await?;
    for protocol in ["grpc", "http/protobuf"] {
        env.set("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", deaf.local_addr()?));
        env.set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
        env.set("OTEL_BSP_SCHEDULE_DELAY", "50");
        env.set("OTEL_METRIC_EXPORT_INTERVAL", "50");
        env.set("WORKER_SHUTDOWN_GRACE", "8s");
        let mut worker = env.start_ready_worker().await?;
        let producer = env.connect_broker().await?;
        let mut events = producer.subscribe_to_events().await?;
        producer.publish(&command(42, &["A fox"], &json!({}))).await?;
        events.wait_for("completed").await?;
        let stopped_at = std::time::Instant::now();
        worker.signal(Signal::TERM);
        assert!(worker.wait_for_exit().await?.success());
        assert!(stopped_at.elapsed() < std::time::Duration::from_secs(8), "{protocol}: {:?}", stopped_at.elapsed());
    }
    Ok(())
}
