//! What an OTLP collector receives of jobs.

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Collector, Database, LIMIT, Span, World, command};
use serde_json::json;

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";
const TRACE_PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const CONSUMED: &str = "assets.commands:generate:assets.generate";

/// A world whose workers send to this collector by this protocol.
fn traced(world: &mut World, collector: &Collector, protocol: &str) {
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.clone());
    world.set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
    world.set("OTEL_BSP_SCHEDULE_DELAY", "50");
}

/// The spans of a trace, as a tree that can be read: kind, name, and what was said to be of interest.
struct Tree<'a> {
    spans: Vec<&'a Span>,
    shown: &'a [&'a str],
}

impl<'a> Tree<'a> {
    fn of(spans: &'a [Span], trace_id: &str, shown: &'a [&'a str]) -> Self {
        // What the database does besides is looked at elsewhere.
        let spans =
            spans.iter().filter(|span| span.trace_id == trace_id && !span.attributes.contains_key("db.system.name"));
        Self { spans: spans.collect(), shown }
    }

    fn below(&self, parent: &str, depth: usize, lines: &mut Vec<String>) {
        let mut children: Vec<_> = self.spans.iter().filter(|span| span.parent == parent).collect();
        children.sort_by_key(|span| span.begun);
        for span in children {
            let values = self.shown.iter().filter_map(|name| Some(format!(" {name}={}", span.attributes.get(*name)?)));
            let failed = span.failure.as_ref().map_or("", |_| " FAILED");
            let kind = if span.kind == "internal" { String::new() } else { format!("{} ", span.kind) };
            lines.push(format!("{}{kind}{}{}{failed}", "  ".repeat(depth), span.name, values.collect::<String>()));
            self.below(&span.id, depth + 1, lines);
        }
    }

    fn text(&self, parent: &str) -> String {
        let mut lines = Vec::new();
        self.below(parent, 0, &mut lines);
        lines.join("\n")
    }
}

/// What the job of the next test is seen as.
fn expected_tree() -> String {
    format!(
        "consumer process {CONSUMED}
  client receive {CONSUMED}
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

/// What the conventions want of each kind of span.
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
        span(&format!("process {CONSUMED}"))?,
        &[
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", CONSUMED),
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
    let asked = spans.iter().find(|span| span.parent == claim.id).context("the claim asks the database")?;
    assert_eq!((asked.name.as_str(), asked.kind), ("claim jobs", "client"));
    check(asked, &[("db.system.name", "postgresql"), ("db.operation.name", "claim"), ("db.collection.name", "jobs")]);
    assert!(span("job")?.resource["service.name"] == "asset-worker");
    Ok(())
}

/// One job with an image that is retried, one that comes from the cache, and one that fails.
#[tokio::test]
async fn a_job_is_one_trace_from_the_producers_span_to_its_events() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = World::with(Database::Postgres).await?;
    traced(&mut world, &collector, "http/protobuf");
    world.set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2");
    world.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let config = json!({"max_concurrent": 1, "min_success_rate": 0.5});
    producer.publish(&command(42, &["A bear"], &config)).await?;
    events.until("completed").await?;
    world.order_times("status=500", Some(1), Some("A fox"))?;
    world.order("status=500", Some("A bear"))?;
    let job = command(42, &["A fox", "A bear", "A gory battle"], &config);
    producer.publish_traced(&job, TRACE_PARENT, "vendor=opaque").await?;
    let seen = events.until("completed").await?;
    worker.signal(Signal::TERM);
    assert!(worker.ended().await?.success());

    let spans = collector.spans();
    let shown = ["image.index", "image.origin", "error.type", "http.response.status_code", "http.request.resend_count"];
    assert_eq!(Tree::of(&spans, TRACE_ID, &shown).text(PRODUCER), expected_tree());

    check_attributes(&spans, job["job_id"].as_str().context("an id")?)?;
    let headers = collector.headers("authorization");
    assert!(!headers.is_empty() && headers.iter().all(|value| value == "Bearer hunter2"), "{headers:?}");

    // The event carries the trace on: where it was made is a span of this trace.
    for event in &seen {
        let header = event.header("traceparent").context("a traceparent")?;
        assert_eq!(
            (event.json()["traceparent"].as_str(), event.header("tracestate").as_deref()),
            (Some(header.as_str()), Some("vendor=opaque"))
        );
        assert_eq!(event.json()["tracestate"], "vendor=opaque");
        let parts: Vec<&str> = header.split('-').collect();
        assert_eq!((parts[1], parts[3]), (TRACE_ID, "01"));
        assert!(
            spans.iter().any(|span| span.trace_id == TRACE_ID && span.id == parts[2]),
            "{header} is no span of ours"
        );
    }
    let told = spans.iter().flat_map(|span| span.attributes.values().chain(&span.failure).chain([&span.name]));
    for text in told {
        let secret = ["sk-sandbox", "hunter2", "A bear", "A fox", "gory"].iter().find(|secret| text.contains(**secret));
        assert_eq!(secret, None, "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_to_gemini_are_spans_below_the_stage_translate() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = World::new().await?;
    traced(&mut world, &collector, "grpc");
    let _gemini = world.gemini().await?;
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(1, &["一隻狐狸"], &json!({}))).await?;
    events.until("completed").await?;
    worker.signal(Signal::TERM);
    assert!(worker.ended().await?.success());

    let spans = collector.spans();
    let translate = spans.iter().find(|span| span.name == "translate").context("the stage")?;
    let mut requests = spans.iter().filter(|span| span.parent == translate.id && span.name == "POST");
    let request = requests.next().context("the request to Gemini")?;
    assert!(request.attribute("url.full").contains("/v1beta/models/"), "{}", request.attribute("url.full"));
    assert_eq!(request.attribute("http.response.status_code"), "200");
    assert_eq!(requests.count(), 0);
    Ok(())
}

/// The same job again: once its worker was killed, once it had ended.
#[tokio::test]
async fn a_continued_and_a_repeated_job_point_to_the_trace_before() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = World::new().await?;
    traced(&mut world, &collector, "grpc");
    world.order_times("slow=60000", Some(1), None)?;
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let job = command(42, &["A fox"], &json!({}));
    producer.publish_traced(&job, TRACE_PARENT, "vendor=opaque").await?;
    events.until("started").await?;
    let asked = async || (world.sandbox.ledger().requests == 1).then_some(());
    wait::until("a request", LIMIT, asked).await?;
    worker.signal(Signal::KILL);
    drop(worker);
    let mut worker = world.worker().await?;
    events.until("completed").await?;
    let other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    producer.publish_traced(&job, other, "").await?;
    events.until("completed").await?;
    worker.signal(Signal::TERM);
    assert!(worker.ended().await?.success());

    let spans = collector.spans();
    let of = |trace_id: &str| {
        spans.iter().find(|span| span.name == "job" && span.trace_id == trace_id).context("a job's span")
    };
    let (continued, repeated) = (of(TRACE_ID)?, of("0af7651916cd43dd8448eb211c80319c")?);
    // The killed worker's span was never sent; its place in the trace is known all the same.
    let [(trace_id, earlier)] = continued.links.as_slice() else { anyhow::bail!("{continued:?}") };
    assert_eq!(trace_id, TRACE_ID);
    assert!(*earlier != continued.id && *earlier != PRODUCER, "{continued:?}");
    assert_eq!(repeated.links, [(TRACE_ID.to_owned(), continued.id.clone())]);
    assert_eq!((repeated.attribute("job.outcome"), continued.attribute("job.outcome")), ("already_ended", "completed"));
    Ok(())
}

#[tokio::test]
async fn what_is_not_sampled_is_not_sent_and_is_carried_on_all_the_same() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = World::new().await?;
    traced(&mut world, &collector, "grpc");
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let other = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    producer.publish_traced(&command(42, &["A bear"], &json!({})), other, "").await?;
    events.until("completed").await?;
    let unsampled = TRACE_PARENT.replace("-01", "-00");
    producer.publish_traced(&command(42, &["A fox"], &json!({})), &unsampled, "vendor=opaque").await?;
    let seen = events.until("completed").await?;
    for event in &seen {
        let header = event.header("traceparent").context("a traceparent")?;
        assert!(header.starts_with(&format!("00-{TRACE_ID}-")) && header.ends_with("-00"), "{header}");
    }
    worker.signal(Signal::TERM);
    assert!(worker.ended().await?.success());
    let spans = collector.spans();
    assert!(spans.iter().any(|span| span.trace_id == "0af7651916cd43dd8448eb211c80319c"), "the sampled one is sent");
    assert!(spans.iter().all(|span| span.trace_id != TRACE_ID), "{spans:?}");
    Ok(())
}

#[tokio::test]
async fn log_lines_and_metrics_are_sent_too_where_that_is_asked_for() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = World::new().await?;
    for protocol in ["grpc", "http/protobuf"] {
        traced(&mut world, &collector, protocol);
        world.set("OTEL_LOGS_EXPORTER", "otlp");
        world.set("OTEL_SERVICE_NAME", protocol);
        let headers = world.folder().join("headers");
        std::fs::write(&headers, "authorization=Bearer%20hunter2\n")?;
        world.set("OTEL_EXPORTER_OTLP_HEADERS_FILE", headers.display().to_string());
        let mut worker = world.worker().await?;
        let producer = world.producer().await?;
        let mut events = producer.events().await?;
        let job = command(42, &["A gory battle"], &json!({"min_success_rate": 0.0}));
        producer.publish_traced(&job, TRACE_PARENT, "").await?;
        events.until("completed").await?;
        worker.signal(Signal::TERM);
        assert!(worker.ended().await?.success());
        let id = job["job_id"].as_str().context("an id")?;
        let lines = collector.lines();
        let line = lines
            .iter()
            .find(|line| line.body == "image failed" && line.attributes.get("job.id").is_some_and(|job| job == id));
        let line = line.with_context(|| format!("{lines:?}"))?;
        assert_eq!((line.trace_id.as_str(), line.attributes["image.index"].as_str()), (TRACE_ID, "1"));
        assert!(collector.spans().iter().any(|span| span.resource["service.name"] == protocol));
    }
    let headers = collector.headers("authorization");
    assert!(headers.len() > 1 && headers.iter().all(|value| value == "Bearer hunter2"), "{headers:?}");
    let metrics = collector.metrics();
    for name in ["asset_worker.jobs", "asset_worker.stage.duration", "gen_ai.client.operation.duration"] {
        assert!(metrics.iter().any(|metric| metric == name), "{name} is not among {metrics:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_job_can_be_followed_by_its_id_alone_in_lines_that_say_where_they_belong() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = World::new().await?;
    traced(&mut world, &collector, "grpc");
    // Less is said, and what is said is as well placed.
    world.set("RUST_LOG", "warn,asset_worker::health=info");
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let job = command(42, &["A gory battle"], &json!({}));
    producer.publish_traced(&job, TRACE_PARENT, "").await?;
    events.until("failed").await?;
    let log = worker.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines: Vec<_> = lines.filter(|line| line["job.id"] == job["job_id"]).collect();
    let said: Vec<_> = lines.iter().filter_map(|line| line["message"].as_str()).collect();
    assert_eq!(said, ["content policy refused a prompt", "image failed", "the job has failed"], "{log}");
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
    assert_eq!(fields, expected, "each once");
    assert!(lines.iter().all(|line| line["trace_id"] == TRACE_ID && line["span_id"].is_string()), "{lines:?}");
    Ok(())
}

/// A collector that takes every connection and says nothing.
#[tokio::test]
async fn a_collector_that_never_answers_delays_neither_jobs_nor_the_end() -> Result<()> {
    let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let mut world = World::new().await?;
    for protocol in ["grpc", "http/protobuf"] {
        world.set("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", deaf.local_addr()?));
        world.set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
        world.set("OTEL_BSP_SCHEDULE_DELAY", "50");
        world.set("OTEL_METRIC_EXPORT_INTERVAL", "50");
        world.set("WORKER_SHUTDOWN_GRACE", "8s");
        let mut worker = world.worker().await?;
        let producer = world.producer().await?;
        let mut events = producer.events().await?;
        producer.publish(&command(42, &["A fox"], &json!({}))).await?;
        events.until("completed").await?;
        let told = std::time::Instant::now();
        worker.signal(Signal::TERM);
        assert!(worker.ended().await?.success());
        assert!(told.elapsed() < std::time::Duration::from_secs(8), "{protocol}: {:?}", told.elapsed());
    }
    Ok(())
}
