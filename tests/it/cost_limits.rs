//! Cost limits of jobs and of the daily budget.

use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Database, TestEnv, WAIT_TIMEOUT, assert_files, backlog_size, command, failure_codes};
use serde_json::{Value, json};

/// Number of requests and spending of all workers; the spending is in millionths of a dollar.
async fn total_spending(env: &TestEnv) -> Result<(i64, i64)> {
    let rows = env.query_rows("SELECT requests, micro_usd FROM spending").await?;
    let sum = |key: &str| rows.iter().filter_map(|row| row[key].as_i64()).sum();
    Ok((sum("requests"), sum("micro_usd")))
}

#[tokio::test]
async fn insufficient_credits_are_detected_before_the_first_request() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_CHECK_BALANCE", "true");
    // Five credits are USD 0.05; three images cost USD 0.06.
    env.sandbox.set_credits(5.0);
    let job = || command(1, &["A fox", "A bear", "An owl"], &json!({}));
    let done = env.generate(&job()).await?;
    assert!(
        done.log.contains("tried again"),
        "the job is retried, since credits may be bought meanwhile: {}",
        done.log
    );
    let data = done.expect_data("failed")?;
    assert_eq!(data["error"]["code"], "insufficient_credits");
    let message = data["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("USD 0.06") && message.contains("5.0 credits (USD 0.05)"), "{message}");
    assert_eq!(failure_codes(&data), ["not_attempted"; 3]);
    assert_eq!(env.sandbox.ledger().requests, 0);
    env.sandbox.set_credits(6.0);
    let data = env.generate(&job()).await?.expect_data("completed")?;
    assert_files(&env, &data, &[1, 2, 3])
}

#[tokio::test]
async fn max_cost_also_limits_retries() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_TIMEOUT", "1s");
    // Every request timed out, so each may have been charged.
    let config = json!({"max_cost_usd": 0.05});
    let data = env.generate(&command(1, &["A fox [fault:slow=60000]"], &config)).await?.expect_data("failed")?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    assert_eq!(data["cost_usd"], json!(0.04), "two requests of USD 0.02; a third would exceed the limit");
    assert_eq!(env.sandbox.ledger().requests, 2);
    assert_eq!(data["failures"][0]["attempts"], 2);
    Ok(())
}

/// Each engine is booked at its own price: in the job's cost, in the day's spending and against its limits.
#[tokio::test]
async fn each_engine_is_booked_at_its_price() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let job = |config: Value| command(1, &["A fox", "A bear"], &config);
    let mut spent = 0;
    for (engine, price) in
        [("stable-diffusion-xl-1024-v1-0", 0.02), ("core", 0.03), ("ultra", 0.08), ("sd3.5-large", 0.065)]
    {
        let config = json!({"engine": engine, "cache": "never", "max_cost_usd": price * 2.0});
        let data = env.generate(&job(config)).await?.expect_data("completed")?;
        assert_eq!(data["cost_usd"], json!(price * 2.0), "{engine}");
        let total = total_spending(&env).await?.1;
        #[expect(clippy::cast_possible_truncation, reason = "millionths of some cents")]
        let expected = (price * 2e6_f64).round() as i64;
        assert_eq!(total - spent, expected, "{engine}");
        spent = total;
        // The price of one image less than two images cost.
        let config = json!({"engine": engine, "cache": "never", "max_cost_usd": price * 1.9});
        let data = env.generate(&job(config)).await?.expect_data("failed")?;
        assert_eq!(data["error"]["code"], "budget_exceeded", "{engine}");
    }
    // The credits of two images, and less.
    env.set("STABILITY_CHECK_BALANCE", "true");
    for (engine, credits) in [("stable-diffusion-xl-1024-v1-0", 4.0), ("core", 6.0), ("ultra", 16.0)] {
        for (credits, outcome) in [(credits - 0.1, "failed"), (credits, "completed")] {
            env.sandbox.set_credits(credits);
            let done = env.generate(&job(json!({"engine": engine, "cache": "never"}))).await?;
            done.expect_data(outcome).with_context(|| format!("{engine} with {credits} credits"))?;
        }
    }
    Ok(())
}

/// The day's budget pays for one image of each engine, but not for two.
#[tokio::test]
async fn daily_budget_counts_each_engine_at_its_price() -> Result<()> {
    for (engine, price) in [("stable-diffusion-xl-1024-v1-0", 0.02), ("core", 0.03), ("ultra", 0.08)] {
        let mut env = TestEnv::new().await?;
        env.make_images_small();
        env.set("STABILITY_ENGINE", engine);
        env.set("WORKER_DAILY_BUDGET_USD", (price * 1.5).to_string());
        let mut worker = env.start_ready_worker().await?;
        let producer = env.connect_broker().await?;
        producer.publish(&command(1, &["A fox", "A bear"], &json!({"max_concurrent": 1}))).await?;
        worker.wait_for_log("account gate closed").await?;
        let samples = worker.metrics().await?;
        let cost = samples.value("asset_worker_cost_total", &[]);
        assert!(cost.is_some_and(|cost| (cost - price).abs() < 1e-6), "{engine}: {cost:?}");
        worker.signal(Signal::TERM);
        worker.wait_for_exit().await?;
        assert_eq!(env.sandbox.ledger().charged, 1, "{engine}");
    }
    Ok(())
}

#[tokio::test]
async fn default_engine_and_price_are_settings() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.set("STABILITY_ENGINE", "ultra");
    let job = || command(1, &["A fox"], &json!({"cache": "never"}));
    let data = env.generate(&job()).await?.expect_data("completed")?;
    assert_eq!(data["cost_usd"], json!(0.08));
    let rows = env.query_rows("SELECT metadata FROM assets").await?;
    assert_eq!(integration_tests::metadata(&rows[0])["engine"], "ultra");
    // The daily budget must pay for one image of the default engine.
    env.set("WORKER_DAILY_BUDGET_USD", "0.07");
    let refused = env.run(&["doctor"]).await?;
    let output = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(output.contains("at least the price of one image, 0.08"), "{output}");
    env.set("WORKER_DAILY_BUDGET_USD", "1");
    env.set("STABILITY_COST_PER_IMAGE_USD", "0.01");
    let data = env.generate(&job()).await?.expect_data("completed")?;
    assert_eq!(data["cost_usd"], json!(0.01));
    Ok(())
}

/// Begins the next day for the workers: what was spent today becomes the spending of a day in the past.
async fn begin_next_day(env: &TestEnv, past_day: &str) -> Result<()> {
    let sql = format!("UPDATE spending SET day = '{past_day}' WHERE day > '2020' RETURNING day");
    anyhow::ensure!(env.query_rows(&sql).await?.len() == 1, "nothing was spent today");
    Ok(())
}

#[tokio::test]
async fn jobs_wait_for_the_next_daily_budget_on_sqlite() -> Result<()> {
    jobs_wait_for_the_next_daily_budget(Database::Sqlite).await
}

#[tokio::test]
async fn jobs_wait_for_the_next_daily_budget_on_postgres() -> Result<()> {
    jobs_wait_for_the_next_daily_budget(Database::Postgres).await
}

async fn jobs_wait_for_the_next_daily_budget(database: Database) -> Result<()> {
    let mut env = TestEnv::with_database(database).await?;
    env.set("WORKER_DAILY_BUDGET_USD", "0.07");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    // Failures that were certainly not charged are refunded.
    let descriptions = ["A fox [fault:status=500 x2]", "A bear", "An owl", "A cat", "A wolf"];
    producer.publish(&command(1, &descriptions, &json!({}))).await?;
    worker.wait_for_log("account gate closed; commands stay on the queue").await?;
    // While the gate is closed, further commands wait too.
    producer.publish(&command(1, &["A lynx"], &json!({}))).await?;
    producer.wait_for_waiting_commands(2).await?;
    let (status, body) = worker.probe("readyz").await?;
    let reason = "the daily budget, WORKER_DAILY_BUDGET_USD=0.07, is used up until 00:00 UTC";
    assert_eq!((status, &body["gate_closed"]), (200, &json!([reason])));
    let closed = worker.metrics().await?.value("asset_worker_gate_closed", &[("reason", "daily_budget")]);
    assert_eq!(closed, Some(1.0));
    assert_eq!(env.sandbox.ledger().charged, 3);
    assert_eq!(total_spending(&env).await?.1, 60_000);
    let jobs = env.query_rows("SELECT status, attempts FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "waiting", "attempts": 0})]);

    begin_next_day(&env, "2000-01-01").await?;
    for _ in 1..=2 {
        let data = events.wait_for_data("completed").await?;
        assert_eq!(data["failed"], 0);
        let total = u32::try_from(data["total"].as_u64().context("total is missing")?)?;
        assert_files(&env, &data, &(1..=total).collect::<Vec<_>>())?;
    }
    assert_eq!(env.sandbox.ledger().charged, 6, "each image is paid for once");
    assert_eq!(total_spending(&env).await?.1, 120_000);
    Ok(())
}

#[tokio::test]
async fn concurrent_workers_share_the_daily_budget() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("WORKER_DAILY_BUDGET_USD", "0.10");
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    env.set("WORKER_JOB_RETRY_DELAYS", "1s");
    env.sandbox.set_latency(Duration::from_millis(100));
    let _workers = (env.start_ready_worker().await?, env.start_ready_worker().await?);
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    for project in 1..=2 {
        producer.publish(&command(project, &["A", "B", "C", "D", "E", "F"], &json!({"cache": "never"}))).await?;
    }
    for (day, charged) in [("2000-01-01", 5), ("2000-01-02", 10)] {
        wait::wait_until("the daily budget to be used up", WAIT_TIMEOUT, async || {
            (env.sandbox.ledger().charged == charged).then_some(())
        })
        .await?;
        // A payment that exceeds the budget would come now. One of the jobs may be complete.
        wait::wait_until("the other jobs to be returned", WAIT_TIMEOUT, async || {
            let unfinished = env.query_rows("SELECT status FROM jobs WHERE status <> 'completed'").await.ok()?;
            let ready = producer.ready_count("assets.generate").await.ok()?;
            (u32::try_from(unfinished.len()) == Ok(ready) && unfinished.iter().all(|job| job["status"] == "waiting"))
                .then_some(())
        })
        .await?;
        assert_eq!(env.sandbox.ledger().charged, charged);
        begin_next_day(&env, day).await?;
    }
    for _ in 1..=2 {
        assert_eq!(events.wait_for_data("completed").await?["succeeded"], 6);
    }
    assert_eq!(env.sandbox.ledger().charged, 12);
    assert_eq!(total_spending(&env).await?, (12, 240_000));
    Ok(())
}

/// Of many jobs, those that a budget does not cover wait: for the next day, and for workers with a higher limit.
#[tokio::test]
async fn backlog_waits_for_a_higher_daily_budget() -> Result<()> {
    let jobs = backlog_size(24);
    let paid = 50.min(jobs / 3);
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.set("WORKER_DAILY_BUDGET_USD", format!("{:.2}", f64::from(paid) * 0.02));
    let mut workers = [env.start_ready_worker().await?, env.start_ready_worker().await?];
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    for number in 1..=jobs {
        let job = command(i64::from(number % 7 + 1), &[&format!("Animal {number}")], &json!({"cache": "never"}));
        producer.publish(&job).await?;
    }
    for (day, charged) in [("2000-01-01", paid), ("2000-01-02", 2 * paid)] {
        wait::wait_until("the daily budget to be used up", WAIT_TIMEOUT, async || {
            (env.sandbox.ledger().charged >= charged).then_some(())
        })
        .await?;
        producer.wait_for_waiting_commands(jobs - charged).await?;
        assert_eq!(env.sandbox.ledger().charged, charged, "no request is paid beyond the limit");
        begin_next_day(&env, day).await?;
    }
    env.set("WORKER_DAILY_BUDGET_USD", "1000");
    for worker in &mut workers {
        let next = env.start_ready_worker().await?;
        worker.signal(Signal::TERM);
        worker.wait_for_exit().await?;
        *worker = next;
    }
    for _ in 0..jobs {
        events.wait_for("completed").await?;
    }
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger.charged, jobs);
    assert!(ledger.by_prompt.values().all(|counts| counts.charged == 1), "each image is paid for once");
    let failed = env.query_rows("SELECT id FROM jobs WHERE status <> 'completed' OR attempts > 0").await?;
    assert_eq!(failed.len(), 0);
    Ok(())
}

/// Each worker is killed while a request is in flight, so that it never learns the result.
#[tokio::test]
async fn crash_loop_cannot_exceed_the_daily_budget() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_DAILY_BUDGET_USD", "0.05");
    let producer = {
        let mut worker = env.start_ready_worker().await?;
        let producer = env.connect_broker().await?;
        producer.publish(&command(1, &["A fox [fault:slow=60000]"], &json!({}))).await?;
        kill_during_request(&env, &mut worker, 1).await?;
        producer
    };
    let mut worker = env.start_ready_worker().await?;
    kill_during_request(&env, &mut worker, 2).await?;
    let worker = env.start_ready_worker().await?;
    worker.wait_for_log("account gate closed; commands stay on the queue").await?;
    producer.wait_for_waiting_commands(1).await?;
    assert_eq!(env.sandbox.ledger().requests, 2);
    assert_eq!(total_spending(&env).await?, (2, 40_000), "requests of the killed workers are included");
    Ok(())
}

async fn kill_during_request(env: &TestEnv, worker: &mut integration_tests::Worker, requests: u32) -> Result<()> {
    let asked = async || (env.sandbox.ledger().requests == requests).then_some(());
    wait::wait_until("a request in flight", WAIT_TIMEOUT, asked).await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    Ok(())
}

#[tokio::test]
async fn reported_job_cost_includes_retries_before_and_after_its_end() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_RETRY_DELAYS", "1s");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    // Four generations that failed but were charged are one attempt.
    let order = command(1, &["A bear", "A fox [fault:error x4]"], &json!({"min_success_rate": 1.0}));
    producer.publish(&order).await?;
    worker.wait_for_log("job will be retried after a delay").await?;
    let job_id = order["job_id"].as_str().context("job_id is missing")?;
    let show = ["jobs", "show", job_id, "--json"];
    let running: Value = serde_json::from_slice(&env.run(&show).await?.stdout)?;
    assert_eq!(running["status"], "waiting");
    assert!(running["cost_usd"].as_f64().is_some_and(|cost| (cost - 0.1).abs() < 1e-9), "{running}");
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["cost_usd"], json!(0.12));
    let ended: Value = serde_json::from_slice(&env.run(&show).await?.stdout)?;
    assert_eq!(ended["cost_usd"], json!(0.12));
    let shown = String::from_utf8_lossy(&env.run(&show[..3]).await?.stdout).into_owned();
    assert!(shown.contains("USD 0.12, 6 requests"), "{shown}");
    Ok(())
}

#[tokio::test]
async fn job_over_max_cost_is_refused_before_translation() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let gemini = env.start_gemini().await?;
    let descriptions = ["A fox", "A bear", "熊", "狐狸", "狼"];
    let config = json!({"max_cost_usd": 0.08});
    let data = env.generate(&command(1, &descriptions, &config)).await?.expect_data("failed")?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    assert_eq!((env.sandbox.ledger().requests, gemini.ledger().requests), (0, 0));
    Ok(())
}

#[tokio::test]
async fn unavailable_balance_does_not_stop_jobs() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_CHECK_BALANCE", "true");
    for status in [403, 404, 500] {
        env.sandbox.set_balance_status(Some(status));
        let done = env.generate(&command(1, &["A fox"], &json!({"cache": "never"}))).await?;
        assert!(done.log.contains("account balance could not be read"), "{}", done.log);
        done.expect_data("completed")?;
    }
    Ok(())
}

/// A job waits for requests that may be refunded before it fails for lack of budget.
#[tokio::test]
async fn refused_payment_waits_for_possible_refunds() -> Result<()> {
    let env = TestEnv::new().await?;
    // The budget covers four requests; four are in flight, one of which is not charged.
    let descriptions = ["A fox [fault:status=500 x1]", "A bear", "An owl", "A cat"];
    let data =
        env.generate(&command(1, &descriptions, &json!({"max_cost_usd": 0.08}))).await?.expect_data("completed")?;
    assert_files(&env, &data, &[1, 2, 3, 4])?;
    assert_eq!(data["cost_usd"], json!(0.08));
    Ok(())
}
