//! The HTTP API under hostile and unlucky conditions.

use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::wait::wait_until;
use integration_tests::{ApiServer, Database, Proxy, TestEnv, WAIT_TIMEOUT};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::api::{new_env, submit, wait_for_end};

/// Sends bytes as they are, and returns the status line of the answer.
async fn send_raw(api: &ApiServer, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(api.address()).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(WAIT_TIMEOUT, stream.read_to_end(&mut answer)).await.context("no answer")??;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn path_tricks_lead_to_no_file() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let _worker = env.start_ready_worker().await?;
    let id = submit(&api, &["A fox"], json!({})).await?;
    wait_for_end(&api, &id).await?;
    std::fs::write(env.folder().join("data/secret.png"), "secret")?;
    let images = format!("/v1/jobs/{id}/images");
    for path in [
        format!("{images}/../../../../data/secret.png"),
        format!("{images}/..%2f..%2f..%2fdata%2fsecret.png"),
        format!("{images}/%2e%2e/%2e%2e/secret.png"),
        format!("{images}/%252e%252e%252fsecret.png"),
        format!("{images}/1%00.png"),
        format!("{images}/1/..%5c..%5csecret.png"),
        format!("{images}//etc/passwd"),
        format!("{images}/01"),
        format!("{images}/+1"),
        format!("{images}/1.png"),
        format!("{images}/-1"),
        format!("{images}/0"),
        format!("{images}/4294967297"),
        "/v1/jobs/..%2f..%2fsecret.png/images/1".to_owned(),
        format!("/v1/jobs/{}/images/1", id.replace('-', "")),
        "/v1/jobs/%7B0%7D/images/1".to_owned(),
        "//etc/passwd".to_owned(),
        "/..%2f..%2fetc/passwd".to_owned(),
    ] {
        // As it is: a client library would resolve the dots.
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let status = send_raw(&api, &request).await?;
        assert!(status.contains(" 404 ") || status.contains(" 422 "), "{path}: {status}");
    }
    assert_eq!(api.get(&format!("{images}/1")).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn oversized_requests_are_refused_without_being_read() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let mut api = env.start_api().await?;
    let path = format!("/v1/jobs/{}", Uuid::now_v7());
    let head = |path: &str, rest: &str| {
        format!(
            "PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n{rest}\r\n"
        )
    };
    // The body is announced and never sent.
    let status = send_raw(&api, &head(&path, "content-length: 4194305\r\n")).await?;
    assert!(status.contains(" 413 "), "{status}");
    let status = send_raw(&api, &head(&path, &format!("x-filler: {}\r\n", "x".repeat(20_000)))).await?;
    assert!(status.contains(" 431 "), "{status}");
    let status = send_raw(&api, &head(&format!("{path}?{}", "x".repeat(20_000)), "")).await?;
    assert!(status.contains(" 431 ") || status.contains(" 414 "), "{status}");
    // In pieces without a length: read up to the limit only.
    let before = api.process().usage().context("usage")?.peak_memory_kib;
    let mut stream = TcpStream::connect(api.address()).await?;
    stream.write_all(head(&path, "transfer-encoding: chunked\r\n").as_bytes()).await?;
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut sent = 0;
    while sent < 200 * 1024 * 1024 && stream.write_all(chunk.as_bytes()).await.is_ok() {
        sent += chunk.len();
    }
    assert!(sent < 32 * 1024 * 1024, "{sent} bytes were taken");
    let after = api.process().usage().context("usage")?.peak_memory_kib;
    assert!(after - before < 32 * 1024, "{before} KiB, then {after} KiB");
    let small = api.post("/v1/account/pause", &json!({"reason": "x".repeat(20_000)})).await?;
    assert_eq!(small.status, 413);
    Ok(())
}

/// More connections than the server has, all of them silent: the next client is served.
#[tokio::test]
async fn silent_clients_do_not_block_others() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let mut silent = Vec::new();
    for number in 0..600 {
        let mut stream = TcpStream::connect(api.address()).await?;
        if number % 2 == 0 {
            stream.write_all(b"GET /v1/jobs HTTP/1.1\r\nhost: loc").await?;
        }
        silent.push(stream);
    }
    assert_eq!(api.get("/v1/jobs").await?.status, 200);
    assert_eq!(api.get("/livez").await?.status, 200);
    // A head that is never completed ends after ten seconds.
    silent.pop();
    let mut last = silent.pop().context("a connection")?;
    let mut rest = Vec::new();
    tokio::time::timeout(WAIT_TIMEOUT, last.read_to_end(&mut rest)).await.context("the connection stays open")??;
    Ok(())
}

#[tokio::test]
async fn slow_body_ends_with_408() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let path = format!("/v1/jobs/{}", Uuid::now_v7());
    let request = format!(
        "PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n{{"
    );
    let (slow, fast) = tokio::join!(send_raw(&api, &request), api.get("/v1/jobs"));
    assert_eq!(fast?.status, 200);
    let slow = slow?;
    assert!(slow.contains(" 408 "), "{slow}");
    Ok(())
}

/// At the limit of calls, a further one is refused at once; the probes are still answered.
#[tokio::test]
async fn calls_beyond_the_limit_are_refused_at_once() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let request =
        "PUT /v1/jobs/x HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    let request = request.replace("/x ", &format!("/{} ", Uuid::now_v7()));
    let mut slow = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(api.address()).await?;
        stream.write_all(request.as_bytes()).await?;
        slow.push(stream);
    }
    let refused = wait_until("a refusal", WAIT_TIMEOUT, async || {
        api.get("/v1/jobs").await.ok().filter(|answer| answer.status == 503)
    })
    .await?;
    assert_eq!((&refused.json()["code"], refused.header("retry-after")), (&json!("busy"), "1"));
    assert_eq!(api.get("/livez").await?.status, 200);
    drop(slow);
    wait_until("an answer", WAIT_TIMEOUT, async || {
        api.get("/v1/jobs").await.ok().filter(|answer| answer.status == 200)
    })
    .await?;
    Ok(())
}

/// Commands that arrive slowly share a bounded memory.
#[tokio::test]
async fn large_commands_are_bounded_together() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let large = "POST /v1/estimate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 4194304\r\n\r\n{";
    let mut slow = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(api.address()).await?;
        stream.write_all(large.as_bytes()).await?;
        slow.push(stream);
    }
    let command = json!({"project_id": 7, "image_descriptions": vec!["x".repeat(2_000); 100]});
    let refused = wait_until("a refusal", WAIT_TIMEOUT, async || {
        api.post("/v1/estimate", &command).await.ok().filter(|answer| answer.status == 503)
    })
    .await?;
    assert_eq!(refused.json()["code"], "busy");
    drop(slow);
    wait_until("an answer", WAIT_TIMEOUT, async || {
        api.post("/v1/estimate", &command).await.ok().filter(|answer| answer.status == 200)
    })
    .await?;
    Ok(())
}

/// Kills the server between two steps of a submission, and starts another one.
async fn kill_during_submission(point: &str) -> Result<(TestEnv, ApiServer, String)> {
    let mut env = new_env(Database::Postgres).await?;
    env.set("ASSET_WORKER_PAUSE_AT", point);
    let mut api = env.start_api().await?;
    let id = Uuid::now_v7().to_string();
    let body = json!({"project_id": 7, "image_descriptions": ["A fox"]});
    let client = api.with_token(None);
    let path = format!("/v1/jobs/{id}");
    let (called, killed) = tokio::join!(client.put(&path, &body), api.process().kill_at_failpoint(point));
    killed?;
    called.expect_err("the server was killed");
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let api = env.start_api().await?;
    Ok((env, api, id))
}

/// The rows are there and the command is not: another process publishes it.
#[tokio::test]
async fn crash_between_rows_and_publication_loses_nothing() -> Result<()> {
    let (env, api, id) = kill_during_submission("before_submitted_command").await?;
    let producer = env.connect_broker().await?;
    assert_eq!(api.get(&format!("/v1/jobs/{id}")).await?.json()["status"], "waiting");
    producer.wait_for_waiting_commands(1).await?;
    let _worker = env.start_ready_worker().await?;
    assert_eq!(wait_for_end(&api, &id).await?["status"], "completed");
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}

/// Nothing was written: the client repeats the call.
#[tokio::test]
async fn crash_before_the_rows_leaves_no_job() -> Result<()> {
    let (env, api, id) = kill_during_submission("before_submission").await?;
    assert_eq!(api.get(&format!("/v1/jobs/{id}")).await?.status, 404);
    let answer = api.put(&format!("/v1/jobs/{id}"), &json!({"project_id": 7, "image_descriptions": ["A fox"]})).await?;
    assert_eq!(answer.status, 202);
    env.connect_broker().await?.wait_for_waiting_commands(1).await
}

/// While the broker is away, jobs are accepted, and published when it is back.
#[tokio::test]
async fn job_is_accepted_without_the_broker() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    let (proxy, url) = Proxy::in_front_of(&env.amqp_url, 5672).await?;
    env.set("AMQP_URL", url);
    let mut api = env.start_api().await?;
    proxy.close();
    api.process().wait_for_log("broker connection lost").await?;
    let id = submit(&api, &["A fox"], json!({})).await?;
    // Ready nevertheless: otherwise no proxy would send the calls on.
    let ready = api.get("/readyz").await?;
    assert_eq!((ready.status, &ready.json()["broker"]), (200, &json!("not connected")));
    assert_eq!(api.get("/v1/dead-letters").await?.status, 503);
    assert_eq!(api.get("/v1/account").await?.json()["queues"], json!(null));
    proxy.open();
    let producer = env.connect_broker().await?;
    producer.wait_for_waiting_commands(1).await?;
    assert_eq!(api.get(&format!("/v1/jobs/{id}")).await?.json()["status"], "waiting");
    Ok(())
}

#[tokio::test]
async fn calls_fail_with_503_without_the_database() -> Result<()> {
    let mut env = new_env(Database::Postgres).await?;
    let (proxy, url) = Proxy::in_front_of(env.database_url(), 5432).await?;
    env.set("DATABASE_URL", url);
    proxy.close();
    let server = env.start(&["serve"])?;
    server.wait_for_log("cannot reach the database").await?;
    assert_eq!(server.get("livez").await?.0, 200);
    let (status, body) = server.get("v1/jobs").await?;
    assert_eq!(status, 503, "{body}");
    proxy.open();
    wait_until("the database", WAIT_TIMEOUT, async || {
        server.get("v1/jobs").await.ok().filter(|(status, _)| *status == 200)
    })
    .await?;
    proxy.close();
    let (status, body) = server.get("v1/jobs").await?;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("the database cannot be used"), "{body}");
    Ok(())
}

/// The trace of the caller goes on in the command.
#[tokio::test]
async fn trace_of_the_caller_is_that_of_the_job() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let (_worker, _producer, mut events) = env.start_worker_and_events().await?;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = json!({"project_id": 7, "image_descriptions": ["A fox"]}).to_string();
    let request = api.request(Method::PUT, &format!("/v1/jobs/{}", Uuid::now_v7()));
    let request = request.header("traceparent", trace).header("content-type", "application/json").body(body);
    assert_eq!(api.send(request.timeout(Duration::from_secs(20))).await?.status, 202);
    let completed = events.wait_for("completed").await?;
    assert_eq!(completed.last().context("an event")?.json()["traceparent"], trace);
    Ok(())
}
