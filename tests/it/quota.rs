//! Several workers share one account: its rate limit and its rate-limit pauses apply to all of them together.

use std::time::{Duration, Instant};

use anyhow::Result;
use integration_tests::{Database, EventStream, TestEnv, Worker, command};
use serde_json::json;

/// Number of concurrent workers.
const WORKERS: usize = 3;

/// Starts the workers with a rate limit of this many requests a minute for all of them together.
async fn start_workers(per_minute: u32) -> Result<(TestEnv, Vec<Worker>)> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.sandbox.set_sketch(true);
    env.set("STABILITY_RATE_LIMIT", per_minute.to_string());
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(env.start_ready_worker().await?);
    }
    Ok((env, workers))
}

/// Publishes one job for each worker.
async fn publish_jobs(env: &TestEnv, images: usize) -> Result<EventStream> {
    let producer = env.connect_broker().await?;
    let events = producer.subscribe_to_events().await?;
    for job in 0..WORKERS {
        let descriptions: Vec<String> = (0..images).map(|image| format!("Scene {image} of {job}")).collect();
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        producer.publish(&command(1, &descriptions, &json!({"cache": "never"}))).await?;
    }
    Ok(events)
}

async fn wait_until_all_completed(events: &mut EventStream) -> Result<()> {
    for _ in 0..WORKERS {
        events.wait_for("completed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn all_workers_together_stay_within_the_rate_limit() -> Result<()> {
    // One request every 204 ms, and up to four at once in the beginning.
    let (env, _workers) = start_workers(300).await?;
    let mut events = publish_jobs(&env, 8).await?;
    wait_until_all_completed(&mut events).await?;
    let arrivals: Vec<Instant> = env.sandbox.request_log().iter().map(|arrival| arrival.received_at).collect();
    assert_eq!(arrivals.len(), 24);
    // Delayed requests do not permit additional ones, so the minimum time from the first to the last request does not
    // depend on the machine.
    let took = arrivals[23].duration_since(arrivals[0]);
    // One interval less, because the first requests may have arrived late.
    assert!(took > Duration::from_millis(204) * (23 - 3 - 1), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn lockout_of_one_worker_stops_all_workers() -> Result<()> {
    let (env, workers) = start_workers(600).await?;
    let lockout = Duration::from_secs(3);
    env.sandbox
        .inject_fault(stability_sandbox::faults::FaultSpec {
            fault: "status=429:3".into(),
            times: Some(1),
            prompt_contains: Some("Scene 2 of 0".into()),
        })
        .map_err(anyhow::Error::msg)?;
    let mut events = publish_jobs(&env, 8).await?;
    wait_until_all_completed(&mut events).await?;
    let arrivals = env.sandbox.request_log();
    assert_eq!(arrivals.len(), 25);
    let met = arrivals.iter().find(|arrival| arrival.status == Some(429)).map(|arrival| arrival.received_at);
    let met = met.ok_or_else(|| anyhow::anyhow!("no request was answered with 429"))?;
    // Requests admitted before the pause takes effect in every worker may still arrive.
    let known = Duration::from_millis(500);
    let during = arrivals.iter().filter(|arrival| {
        let after = arrival.received_at.saturating_duration_since(met);
        after > known && after < lockout
    });
    assert_eq!(during.count(), 0);
    assert!(arrivals.iter().any(|arrival| arrival.received_at > met + lockout));
    for worker in &workers {
        assert!(!worker.log().contains("could not be shared"), "{}", worker.log());
    }
    Ok(())
}

#[tokio::test]
async fn twenty_workers_start_concurrently_on_an_empty_database() -> Result<()> {
    for database in [Database::Sqlite, Database::Postgres] {
        let env = TestEnv::with_database(database).await?;
        let mut workers = (0..20).map(|_| env.start_worker()).collect::<Result<Vec<_>>>()?;
        for worker in &mut workers {
            worker.wait_until_ready().await?;
        }
        let migrated = workers.iter().filter(|worker| worker.log().contains("database migrations applied")).count();
        assert_eq!(migrated, 1, "{database:?}");
    }
    Ok(())
}
