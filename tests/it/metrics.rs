//! Metrics served at `/metrics`, and that no other path is served.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::wait;
use integration_tests::{Database, TestEnv, WAIT_TIMEOUT, command, documented_metrics};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Jobs that together affect all metrics: a retry, a cached image, failures, a rejected message, a daily budget.
#[tokio::test]
async fn exposed_metrics_match_the_documentation() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("WORKER_DAILY_BUDGET_USD", "5");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let config = json!({"max_concurrent": 1, "min_success_rate": 0.5});
    producer.publish(&command(42, &["A bear"], &config)).await?;
    events.wait_for("completed").await?;
    env.inject_fault_times("status=500", Some(1), Some("A fox"))?;
    env.inject_fault("status=500", Some("A bear"))?;
    let job = command(42, &["A fox", "A bear", "A gory battle"], &config);
    producer.publish(&job).await?;
    events.wait_for("completed").await?;
    producer.publish(&job).await?;
    events.wait_for("completed").await?;
    env.inject_fault_times("status=429:1", Some(1), Some("An owl"))?;
    producer.publish(&command(42, &["An owl"], &config)).await?;
    events.wait_for("completed").await?;
    producer.publish_bytes(b"{}", None).await?;
    let settled = async || {
        let samples = worker.metrics().await.ok()?;
        let dead = samples.value("asset_worker_queue_messages", &[("queue", "assets.generate.dead")])?;
        (dead >= 1.0 && samples.value("asset_worker_jobs_in_flight", &[])? < 1.0).then_some(samples)
    };
    let samples = wait::wait_until("the end of all jobs", WAIT_TIMEOUT, settled).await?;

    let mut api = env.start_api().await?;
    assert_eq!(api.get("/v1/jobs").await?.status, 200);
    let of_api = api.process().metrics().await?;
    let page = documented_metrics()?;
    let names = samples.names().chain(of_api.names()).filter(|name| name != "target_info");
    assert_eq!(names.collect::<BTreeSet<_>>(), page.keys().cloned().collect());
    // The server of the HTTP API is not counted as a worker.
    assert_eq!(
        (of_api.value("asset_worker_http_api_ready", &[]), samples.value("asset_worker_http_api_ready", &[])),
        (Some(1.0), None)
    );
    for of_worker in ["asset_worker_ready", "asset_worker_gate_closed", "asset_worker_api_in_flight_limit"] {
        assert!(samples.value(of_worker, &[]).is_some() && of_api.value(of_worker, &[]).is_none(), "{of_worker}");
    }
    for (name, labels) in samples.labels().into_iter().chain(of_api.labels()) {
        let allowed = page.get(&name).cloned().unwrap_or_default();
        assert!(name == "target_info" || labels.is_subset(&allowed), "{name}: {labels:?}; documented are {allowed:?}");
    }
    let check = |name: &str, labels: &[(&str, &str)], value: f64| {
        let found = samples.value(name, labels);
        assert!(found.is_some_and(|found| (found - value).abs() < 1e-6), "{name}{labels:?}: {found:?}, not {value}");
    };
    let (jobs, images, requests) =
        ("asset_worker_jobs_total", "asset_worker_images_total", "asset_worker_api_requests_total");
    let engine = ("engine", "stable-diffusion-xl-1024-v1-0");
    check(jobs, &[("outcome", "completed")], 3.0);
    check(jobs, &[("outcome", "already_ended")], 1.0);
    check(jobs, &[("outcome", "failed"), ("error_type", "invalid_request")], 1.0);
    check(jobs, &[("outcome", "failed"), ("error_type", "unauthorized")], 0.0);
    check(images, &[("outcome", "completed"), ("origin", "generated")], 3.0);
    check(images, &[("outcome", "completed"), ("origin", "cache")], 1.0);
    check(images, &[("outcome", "failed"), ("error_type", "content_policy")], 1.0);
    check(requests, &[engine, ("outcome", "ok")], 3.0);
    check(requests, &[engine, ("outcome", "server")], 5.0);
    check(requests, &[engine, ("outcome", "rate_limited")], 1.0);
    check("asset_worker_api_retries_total", &[("cause", "server")], 4.0);
    check("asset_worker_api_rate_limited_total", &[], 1.0);
    check("asset_worker_cost_total", &[], 0.06);
    check("asset_worker_budget_limit", &[], 5.0);
    check("asset_worker_dead_letters_total", &[("reason", "invalid_request")], 1.0);
    check("asset_worker_terminal_events_total", &[("outcome", "published")], 4.0);
    check("asset_worker_job_success_rate_ratio_count", &[], 3.0);
    check("asset_worker_stage_duration_seconds_count", &[("stage", "process")], 3.0);
    check("asset_worker_api_in_flight", &[], 0.0);
    check("asset_worker_api_in_flight_limit", &[], 4.0);
    check("asset_worker_jobs_limit", &[], 2.0);
    check("asset_worker_quota_limit", &[], 6000.0);
    check("asset_worker_queue_consumers", &[], 1.0);
    check("asset_worker_ready", &[], 1.0);
    Ok(())
}

#[tokio::test]
async fn broker_reconnection_is_counted() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let proxy = env.start_broker_proxy().await?;
    let mut worker = env.start_ready_worker().await?;
    let value = async |name: &str| worker.metrics().await.ok()?.value(name, &[]);
    assert_eq!(value("asset_worker_broker_reconnects_total").await, Some(0.0));
    proxy.close();
    let unseen = async || {
        let samples = worker.metrics().await.ok()?;
        // Metrics whose value is unknown are not exposed.
        (samples.value("asset_worker_ready", &[])? < 1.0
            && samples.value("asset_worker_queue_consumers", &[]).is_none())
        .then_some(())
    };
    wait::wait_until("the lost broker in the metrics", WAIT_TIMEOUT, unseen).await?;
    proxy.open();
    worker.wait_until_ready().await?;
    let samples = worker.metrics().await?;
    assert_eq!(samples.value("asset_worker_broker_reconnects_total", &[]), Some(1.0));
    Ok(())
}

#[tokio::test]
async fn only_known_paths_are_served_and_without_secrets() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2");
    let worker = env.start_ready_worker().await?;
    for path in ["", "debug", "metrics/", "livez/x", "..%2f"] {
        assert_eq!(worker.get(path).await?.0, 404, "{path}");
    }
    for path in ["livez", "readyz", "metrics"] {
        let (status, text) = worker.get(path).await?;
        assert_eq!(status, 200);
        let secret =
            ["sk-sandbox", "hunter2", "postgres://", "amqp://"].into_iter().find(|secret| text.contains(secret));
        assert_eq!(secret, None, "{text}");
    }
    assert_eq!(
        dev_services::http_client()?.post(format!("http://{}/metrics", worker.address()?)).send().await?.status(),
        405
    );
    Ok(())
}

/// More clients than are served at once send half a request and wait; one more sends an endless request head.
#[tokio::test]
async fn slow_or_excess_http_clients_are_disconnected() -> Result<()> {
    let env = TestEnv::new().await?;
    let worker = env.start_ready_worker().await?;
    let address = worker.address()?;
    let mut slow = Vec::new();
    for _ in 0..150 {
        let mut client = TcpStream::connect(&address).await?;
        client.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n").await?;
        slow.push(client);
    }
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(42, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;
    // Later clients are served once the slow ones are disconnected.
    let (status, _) = worker.get("livez").await?;
    assert_eq!(status, 200);
    for mut client in slow {
        let mut answer = Vec::new();
        tokio::time::timeout(WAIT_TIMEOUT, client.read_to_end(&mut answer))
            .await
            .context("a slow client was not disconnected")?
            .ok();
    }
    let mut endless = TcpStream::connect(&address).await?;
    endless.write_all(b"GET /livez HTTP/1.1\r\n").await?;
    let line = [b"X-Padding: ".as_slice(), &[b'x'; 8_000], b"\r\n"].concat();
    let sent = async {
        while endless.write_all(&line).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), sent).await.context("an endless request head was not refused")?;
    assert_eq!(worker.get("readyz").await?.0, 200);
    Ok(())
}

/// The heartbeat age decides the answer of `/livez`.
#[tokio::test]
async fn consumer_loop_reports_its_heartbeat_repeatedly() -> Result<()> {
    let env = TestEnv::new().await?;
    let worker = env.start_ready_worker().await?;
    let silence = async || worker.metrics().await.ok()?.value("asset_worker_heartbeat_age_seconds", &[]);
    for _ in 0..2 {
        let mut before = silence().await.context("the heartbeat age is missing")?;
        let shorter = async || {
            let now = silence().await?;
            let shorter = now < before;
            (std::mem::replace(&mut before, now), shorter).1.then_some(())
        };
        wait::wait_until("a heartbeat", WAIT_TIMEOUT, shorter).await?;
    }
    Ok(())
}
