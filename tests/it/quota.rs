//! Several workers, one account: they keep to its quota together, and to each other's lock-outs.

use std::time::{Duration, Instant};

use anyhow::Result;
use integration_tests::{Database, Events, Worker, World, command};
use serde_json::json;

/// Workers side by side.
const WORKERS: usize = 3;

/// Some jobs done by several workers at this many requests a minute for all of them.
async fn world(per_minute: u32) -> Result<(World, Vec<Worker>)> {
    let mut world = World::with(Database::Postgres).await?;
    world.sandbox.set_sketch(true);
    world.set("STABILITY_RATE_LIMIT", per_minute.to_string());
    world.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(world.worker().await?);
    }
    Ok((world, workers))
}

/// Publishes as many jobs as there are workers.
async fn publish(world: &World, images: usize) -> Result<Events> {
    let producer = world.producer().await?;
    let events = producer.events().await?;
    for job in 0..WORKERS {
        let descriptions: Vec<String> = (0..images).map(|image| format!("Scene {image} of {job}")).collect();
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        producer.publish(&command(1, &descriptions, &json!({"cache": "never"}))).await?;
    }
    Ok(events)
}

async fn all_completed(events: &mut Events) -> Result<()> {
    for _ in 0..WORKERS {
        events.until("completed").await?;
    }
    Ok(())
}

#[tokio::test]
async fn all_workers_together_send_no_more_than_the_account_may() -> Result<()> {
    // A request each 204 ms, and four more at once in the beginning.
    let (world, _workers) = world(300).await?;
    let mut events = publish(&world, 8).await?;
    all_completed(&mut events).await?;
    let arrivals: Vec<Instant> = world.sandbox.arrivals().iter().map(|arrival| arrival.at).collect();
    assert_eq!(arrivals.len(), 24);
    // What comes later than it was permitted makes no room for more: the time from the first to the last request is a bound for any machine.
    let took = arrivals[23].duration_since(arrivals[0]);
    // One interval less, for what was late in the beginning.
    assert!(took > Duration::from_millis(204) * (23 - 3 - 1), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn a_lock_out_that_one_worker_meets_stops_all_of_them() -> Result<()> {
    let (world, _workers) = world(600).await?;
    let lockout = Duration::from_secs(3);
    world
        .sandbox
        .order(stability_sandbox::faults::FaultOrder {
            fault: "status=429:3".into(),
            times: Some(1),
            prompt_contains: Some("Scene 2 of 0".into()),
        })
        .map_err(anyhow::Error::msg)?;
    let mut events = publish(&world, 8).await?;
    all_completed(&mut events).await?;
    let arrivals = world.sandbox.arrivals();
    assert_eq!(arrivals.len(), 25);
    let met = arrivals.iter().find(|arrival| arrival.status == Some(429)).map(|arrival| arrival.at);
    let met = met.ok_or_else(|| anyhow::anyhow!("nobody met the lock-out"))?;
    // What was on its way when it was met may still arrive.
    let known = Duration::from_millis(500);
    let during = arrivals.iter().filter(|arrival| {
        let after = arrival.at.saturating_duration_since(met);
        after > known && after < lockout
    });
    assert_eq!(during.count(), 0);
    assert!(arrivals.iter().any(|arrival| arrival.at > met + lockout));
    Ok(())
}

#[tokio::test]
async fn twenty_workers_that_start_at_once_on_an_empty_database_all_come_up() -> Result<()> {
    for database in [Database::Sqlite, Database::Postgres] {
        let world = World::with(database).await?;
        let mut workers = (0..20).map(|_| world.start_worker()).collect::<Result<Vec<_>>>()?;
        for worker in &mut workers {
            worker.ready().await?;
        }
        let migrated = workers.iter().filter(|worker| worker.log().contains("the database was migrated")).count();
        assert_eq!(migrated, 1, "{database:?}");
    }
    Ok(())
}
