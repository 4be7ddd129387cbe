//! What a job may cost.

use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Database, LIMIT, World, assert_files, codes, command};
use serde_json::{Value, json};

/// What all workers have spent, in millionths of a dollar, and for how many requests.
async fn spent(world: &World) -> Result<(i64, i64)> {
    let rows = world.rows("SELECT requests, micro_usd FROM spending").await?;
    let sum = |key: &str| rows.iter().filter_map(|row| row[key].as_i64()).sum();
    Ok((sum("requests"), sum("micro_usd")))
}

#[tokio::test]
async fn credits_that_do_not_pay_for_the_job_are_noticed_before_the_first_request() -> Result<()> {
    let mut world = World::new().await?;
    world.set("STABILITY_CHECK_BALANCE", "true");
    // Five cents; three images cost six.
    world.sandbox.set_credits(5.0);
    let job = || command(1, &["A fox", "A bear", "An owl"], &json!({}));
    let done = world.generate(&job()).await?;
    assert!(done.log.contains("tried again"), "credits may be bought meanwhile: {}", done.log);
    let data = done.data_of("failed")?;
    assert_eq!(data["error"]["code"], "insufficient_credits");
    let message = data["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("USD 0.06") && message.contains("5.0 credits (USD 0.05)"), "{message}");
    assert_eq!(codes(&data), ["not_attempted"; 3]);
    assert_eq!(world.sandbox.ledger().requests, 0);
    world.sandbox.set_credits(6.0);
    let data = world.generate(&job()).await?.data_of("completed")?;
    assert_files(&world, &data, &[1, 2, 3])
}

#[tokio::test]
async fn max_cost_bounds_retries_too() -> Result<()> {
    let mut world = World::new().await?;
    world.set("STABILITY_TIMEOUT", "1s");
    // Every request may have been charged: it timed out.
    let config = json!({"max_cost_usd": 0.05});
    let data = world.generate(&command(1, &["A fox [fault:slow=60000]"], &config)).await?.data_of("failed")?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    assert_eq!(data["cost_usd"], json!(0.04), "two requests of two cents; a third would be six");
    assert_eq!(world.sandbox.ledger().requests, 2);
    assert_eq!(data["failures"][0]["attempts"], 2);
    Ok(())
}

#[tokio::test]
async fn the_days_budget_ends_a_job_and_keeps_what_was_made_on_sqlite() -> Result<()> {
    the_days_budget_ends_a_job_and_keeps_what_was_made(Database::Sqlite).await
}

#[tokio::test]
async fn the_days_budget_ends_a_job_and_keeps_what_was_made_on_postgres() -> Result<()> {
    the_days_budget_ends_a_job_and_keeps_what_was_made(Database::Postgres).await
}

async fn the_days_budget_ends_a_job_and_keeps_what_was_made(database: Database) -> Result<()> {
    let mut world = World::with(database).await?;
    world.set("WORKER_DAILY_BUDGET_USD", "0.07");
    let _worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    // Failures that were surely free are given back.
    let descriptions = ["A fox [fault:status=500 x2]", "A bear", "An owl", "A cat", "A wolf"];
    producer.publish(&command(1, &descriptions, &json!({}))).await?;
    let data = events.data_of("failed").await?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    let message = data["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("WORKER_DAILY_BUDGET_USD=0.07"), "{message}");
    assert_eq!((&data["succeeded"], &data["cost_usd"]), (&json!(3), &json!(0.06)));
    assert_eq!(codes(&data), ["not_attempted"; 2]);
    let kept: Vec<u32> = data["assets"]
        .as_array()
        .context("a list")?
        .iter()
        .filter_map(|asset| asset["index"].as_u64()?.try_into().ok())
        .collect();
    assert_files(&world, &data, &kept)?;
    let ledger = world.sandbox.ledger();
    assert_eq!(ledger.charged, 3);
    assert_eq!(spent(&world).await?.1, 60_000);
    // The next job finds nothing left, unless what it wants is there already.
    producer.publish(&command(1, &["A lynx"], &json!({}))).await?;
    assert_eq!(events.data_of("failed").await?["error"]["code"], "budget_exceeded");
    assert_eq!(world.sandbox.ledger().requests, ledger.requests);
    Ok(())
}

#[tokio::test]
async fn workers_side_by_side_share_the_days_budget() -> Result<()> {
    let mut world = World::with(Database::Postgres).await?;
    world.set("WORKER_DAILY_BUDGET_USD", "0.10");
    world.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    world.sandbox.set_latency(Duration::from_millis(100));
    let _workers = (world.worker().await?, world.worker().await?);
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    for project in 1..=2 {
        producer.publish(&command(project, &["A", "B", "C", "D", "E", "F"], &json!({"cache": "never"}))).await?;
    }
    let mut made = 0;
    for _ in 0..2 {
        let data = events.data_of("failed").await?;
        assert_eq!(data["error"]["code"], "budget_exceeded");
        made += data["succeeded"].as_u64().unwrap_or_default();
    }
    assert_eq!((made, world.sandbox.ledger().charged), (5, 5));
    assert_eq!(spent(&world).await?, (5, 100_000));
    Ok(())
}

/// Each life of the worker is ended while a request is in flight, so that it never hears what came of it.
#[tokio::test]
async fn a_crash_loop_cannot_burn_the_days_budget() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_DAILY_BUDGET_USD", "0.05");
    let producer = {
        let mut worker = world.worker().await?;
        let producer = world.producer().await?;
        producer.publish(&command(1, &["A fox [fault:slow=60000]"], &json!({}))).await?;
        killed_in_flight(&world, &mut worker, 1).await?;
        producer
    };
    let mut worker = world.worker().await?;
    killed_in_flight(&world, &mut worker, 2).await?;
    let mut events = producer.events().await?;
    let _worker = world.worker().await?;
    let data = events.data_of("failed").await?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    assert_eq!(world.sandbox.ledger().requests, 2);
    assert_eq!(data["cost_usd"], json!(0.04), "what was paid for in other lives is known");
    assert_eq!(spent(&world).await?, (2, 40_000));
    Ok(())
}

async fn killed_in_flight(world: &World, worker: &mut integration_tests::Worker, requests: u32) -> Result<()> {
    let asked = async || (world.sandbox.ledger().requests == requests).then_some(());
    wait::until("a request in flight", LIMIT, asked).await?;
    worker.signal(Signal::KILL);
    worker.ended().await?;
    Ok(())
}

#[tokio::test]
async fn what_a_job_costs_is_told_with_its_retries_while_it_runs_and_at_its_end() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_JOB_RETRY_DELAYS", "1s");
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    // Four pictures that could not be finished, and charged for, are one try.
    let order = command(1, &["A bear", "A fox [fault:error x4]"], &json!({"min_success_rate": 1.0}));
    producer.publish(&order).await?;
    worker.has_logged("the job is tried again later").await?;
    let job_id = order["job_id"].as_str().context("an id")?;
    let show = ["jobs", "show", job_id, "--json"];
    let running: Value = serde_json::from_slice(&world.run(&show).await?.stdout)?;
    assert_eq!(running["status"], "waiting");
    assert!(running["cost_usd"].as_f64().is_some_and(|cost| (cost - 0.1).abs() < 1e-9), "{running}");
    let data = events.data_of("completed").await?;
    assert_eq!(data["cost_usd"], json!(0.12));
    let ended: Value = serde_json::from_slice(&world.run(&show).await?.stdout)?;
    assert_eq!(ended["cost_usd"], json!(0.12));
    let shown = String::from_utf8_lossy(&world.run(&show[..3]).await?.stdout).into_owned();
    assert!(shown.contains("USD 0.12, 6 requests"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_job_that_costs_too_much_is_refused_before_anybody_is_paid_also_for_translation() -> Result<()> {
    let mut world = World::new().await?;
    let gemini = world.gemini().await?;
    let descriptions = ["A fox", "A bear", "熊", "狐狸", "狼"];
    let config = json!({"max_cost_usd": 0.08});
    let data = world.generate(&command(1, &descriptions, &config)).await?.data_of("failed")?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    assert_eq!((world.sandbox.ledger().requests, gemini.ledger().requests), (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_balance_that_cannot_be_asked_for_is_no_reason_not_to_work() -> Result<()> {
    let mut world = World::new().await?;
    world.set("STABILITY_CHECK_BALANCE", "true");
    for status in [403, 404, 500] {
        world.sandbox.set_balance_status(Some(status));
        let done = world.generate(&command(1, &["A fox"], &json!({"cache": "never"}))).await?;
        assert!(done.log.contains("the account's credits are not known"), "{}", done.log);
        done.data_of("completed")?;
    }
    Ok(())
}

/// What may turn out to be free is waited for before a job is given up for want of money.
#[tokio::test]
async fn a_payment_that_is_refused_waits_for_those_that_may_be_given_back() -> Result<()> {
    let world = World::new().await?;
    // Money for four requests, four in flight, one of which is free after all.
    let descriptions = ["A fox [fault:status=500 x1]", "A bear", "An owl", "A cat"];
    let data =
        world.generate(&command(1, &descriptions, &json!({"max_cost_usd": 0.08}))).await?.data_of("completed")?;
    assert_files(&world, &data, &[1, 2, 3, 4])?;
    assert_eq!(data["cost_usd"], json!(0.08));
    Ok(())
}
