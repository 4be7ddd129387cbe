//! The API refuses the account, because of the key or the credits: the backlog waits, and one job at a time finds out
//! whether paid requests are accepted again.

use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait::wait_until;
use integration_tests::{
    API_KEY, BrokerClient, Database, EventStream, TestEnv, WAIT_TIMEOUT, Worker, backlog_size, command,
};
use serde_json::{Value, json};

const CLOSED: &str = "account gate closed; commands stay on the queue";
const OPENED: &str = "account gate opened";
const PROBE_FAILED: &str = "account probe failed";
const NO_CREDITS: &str = "account probe: the credits do not cover an image";
const PROBE_SUCCEEDED: &str = "account probe succeeded";

/// Makes the next probe of each refused key due now.
async fn make_probe_due(env: &TestEnv) -> Result<()> {
    let due = env.query_rows("UPDATE account_keys SET probe_due_ms = 0 RETURNING key_hash").await?;
    anyhow::ensure!(!due.is_empty(), "no key was used");
    Ok(())
}

async fn publish_jobs(producer: &BrokerClient, count: u32) -> Result<()> {
    for number in 1..=count {
        producer.publish(&command(i64::from(number % 7 + 1), &[&format!("Animal {number}")], &json!({}))).await?;
    }
    Ok(())
}

/// Waits until all jobs have completed, and checks that each image was paid for once.
async fn expect_all_completed(env: &TestEnv, events: &mut EventStream, count: u32) -> Result<()> {
    for _ in 0..count {
        events.wait_for("completed").await?;
    }
    let stored = env.query_rows("SELECT file_path FROM assets WHERE status = 'completed'").await?;
    assert_eq!(u32::try_from(stored.len())?, count);
    for row in stored {
        let path = row["file_path"].as_str().context("file_path is missing")?;
        assert!(env.stored_path(path).is_file(), "{path}");
    }
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger.charged, count);
    assert!(ledger.by_prompt.values().all(|counts| counts.charged == 1), "{:?}", ledger.by_prompt);
    Ok(())
}

/// Closes the gate by one job of many: the others wait, uncounted.
async fn expect_one_counted_attempt(env: &TestEnv, producer: &BrokerClient, count: u32) -> Result<Value> {
    producer.wait_for_waiting_commands(count).await?;
    let jobs = env.query_rows("SELECT attempts FROM jobs").await?;
    let counted: i64 = jobs.iter().filter_map(|job| job["attempts"].as_i64()).sum();
    assert_eq!(counted, 1, "only the job that closed the gate counts an attempt");
    assert_eq!(env.query_rows("SELECT id FROM jobs WHERE status IN ('completed', 'failed')").await?.len(), 0);
    assert_eq!(env.sandbox.ledger().charged, 0);
    Ok(env.query_rows("SELECT refused_code, refused_detail FROM account_keys").await?.remove(0))
}

async fn expect_gate_reason(worker: &Worker, code: &str, text: &str) -> Result<()> {
    worker.wait_for_log(CLOSED).await?;
    let (status, body) = worker.probe("readyz").await?;
    assert_eq!((status, &body["status"]), (200, &json!("ok")), "a rollout must be able to repair a refused account");
    let reason = body["gate_closed"][0].as_str().unwrap_or_default();
    assert!(reason.starts_with(text), "{body}");
    let closed = worker.metrics().await?.value("asset_worker_gate_closed", &[("reason", code)]);
    assert_eq!(closed, Some(1.0));
    Ok(())
}

/// Two workers, and credits that come back.
async fn backlog_waits_for_credits(database: Database) -> Result<()> {
    let jobs = backlog_size(12);
    let mut env = TestEnv::with_database(database).await?;
    env.make_images_small();
    env.set("WORKER_JOB_RETRY_DELAYS", "1s");
    env.sandbox.set_credits(1.0);
    let workers = match database {
        Database::Postgres => vec![env.start_ready_worker().await?, env.start_ready_worker().await?],
        Database::Sqlite => vec![env.start_ready_worker().await?],
    };
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    publish_jobs(&producer, jobs).await?;
    for worker in &workers {
        expect_gate_reason(worker, "insufficient_credits", "the account lacks credits since 20").await?;
    }
    let row = expect_one_counted_attempt(&env, &producer, jobs).await?;
    assert_eq!(row["refused_code"], "insufficient_credits");
    let requests = env.sandbox.ledger().requests;
    make_probe_due(&env).await?;
    wait_for_any_log(&workers, NO_CREDITS).await?;
    env.sandbox.set_credits(100_000.0);
    make_probe_due(&env).await?;
    expect_all_completed(&env, &mut events, jobs).await?;
    for worker in &workers {
        worker.wait_for_log(OPENED).await?;
    }
    assert_eq!(env.sandbox.ledger().requests, requests + jobs, "nothing is requested while the gate is closed");
    let keys = env.query_rows("SELECT status, admitted_job FROM account_keys").await?;
    assert_eq!(keys, [json!({"status": "accepted", "admitted_job": null})]);
    Ok(())
}

async fn wait_for_any_log(workers: &[Worker], text: &str) -> Result<()> {
    let logged = async || workers.iter().any(|worker| worker.log().contains(text)).then_some(());
    wait_until(text, WAIT_TIMEOUT, logged).await
}

#[tokio::test]
async fn backlog_waits_for_credits_on_sqlite() -> Result<()> {
    backlog_waits_for_credits(Database::Sqlite).await
}

#[tokio::test]
async fn backlog_waits_for_credits_on_postgres() -> Result<()> {
    backlog_waits_for_credits(Database::Postgres).await
}

#[tokio::test]
async fn only_the_job_that_closed_the_gate_fails() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    env.sandbox.set_keys(&[]);
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    publish_jobs(&producer, 8).await?;
    let failed = events.wait_for_data("failed").await?;
    assert_eq!(
        (&failed["error"]["code"], &failed["failures"][0]["code"]),
        (&json!("unauthorized"), &json!("not_attempted"))
    );
    expect_gate_reason(&worker, "unauthorized", "the API refuses the key since 20").await?;
    producer.wait_for_waiting_commands(7).await?;
    // A probe with a key that is still refused admits no job.
    make_probe_due(&env).await?;
    worker.wait_for_log(PROBE_FAILED).await?;
    producer.wait_for_waiting_commands(7).await?;
    env.sandbox.set_keys(&[API_KEY]);
    make_probe_due(&env).await?;
    expect_all_completed(&env, &mut events, 7).await?;
    Ok(())
}

/// The account has credits, but the API refuses each paid request.
#[tokio::test]
async fn admitted_job_that_is_refused_is_returned_uncounted() -> Result<()> {
    let env = TestEnv::with_database(Database::Postgres).await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    env.inject_fault("status=402", None)?;
    publish_jobs(&producer, 5).await?;
    expect_one_counted_attempt(&env, &producer, 5).await?;
    for probes in 1..=3 {
        let requests = env.sandbox.ledger().requests;
        make_probe_due(&env).await?;
        let refused = async || (env.sandbox.ledger().requests > requests).then_some(());
        wait_until("the request of the admitted job", WAIT_TIMEOUT, refused).await?;
        expect_one_counted_attempt(&env, &producer, 5).await?;
        assert_eq!(env.sandbox.ledger().requests, requests + 1, "one job is admitted after each probe");
        assert_eq!(worker.log().matches(PROBE_SUCCEEDED).count(), probes);
    }
    env.sandbox.clear_faults();
    make_probe_due(&env).await?;
    expect_all_completed(&env, &mut events, 5).await
}

#[tokio::test]
async fn place_of_a_killed_admitted_worker_is_freed() -> Result<()> {
    let env = TestEnv::with_database(Database::Postgres).await?;
    env.sandbox.set_credits(0.0);
    let mut first = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    publish_jobs(&producer, 3).await?;
    expect_one_counted_attempt(&env, &producer, 3).await?;
    env.sandbox.set_credits(100_000.0);
    env.sandbox.set_latency(Duration::from_mins(1));
    make_probe_due(&env).await?;
    let admitted = async || {
        let keys = env.query_rows("SELECT status FROM account_keys WHERE admitted_job IS NOT NULL").await.ok()?;
        (keys.len() == 1).then_some(())
    };
    wait_until("an admitted job", WAIT_TIMEOUT, admitted).await?;
    let second = env.start_ready_worker().await?;
    // While the admitted job has its lease, nothing else probes or pays. `generate` does not wait until a probe is due.
    let keys = "SELECT probe_number, admitted_job FROM account_keys";
    let admitted = env.query_rows(keys).await?;
    assert_eq!(env.run(&["generate", "--project", "9", "A wolf"]).await?.status.code(), Some(1));
    assert_eq!(env.query_rows(keys).await?, admitted);
    expect_gate_reason(&second, "insufficient_credits", "the account lacks credits").await?;
    first.signal(Signal::KILL);
    first.wait_for_exit().await?;
    env.sandbox.set_latency(Duration::ZERO);
    make_probe_due(&env).await?;
    second.wait_for_log(PROBE_SUCCEEDED).await?;
    for _ in 0..3 {
        events.wait_for_data("completed").await?;
    }
    assert!(env.sandbox.ledger().charged <= 4, "only the request in flight at the kill may be repeated");
    Ok(())
}

#[tokio::test]
async fn backlog_survives_a_worker_killed_before_it_closes_the_gate() -> Result<()> {
    let jobs = backlog_size(6);
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.sandbox.set_keys(&[]);
    env.set("ASSET_WORKER_PAUSE_AT", "before_gate_closes");
    let mut killed = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    publish_jobs(&producer, jobs).await?;
    killed.wait_for_log("before_gate_closes").await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let other = env.start_ready_worker().await?;
    other.wait_for_log(CLOSED).await?;
    killed.signal(Signal::KILL);
    killed.wait_for_exit().await?;
    expect_one_counted_attempt(&env, &producer, jobs).await?;
    env.sandbox.set_keys(&[API_KEY]);
    make_probe_due(&env).await?;
    expect_all_completed(&env, &mut events, jobs).await
}

/// Workers with the old key stay closed while those with the new one work.
#[tokio::test]
async fn backlog_survives_a_rolling_restart_with_another_key() -> Result<()> {
    let jobs = backlog_size(10);
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.sandbox.set_keys(&["sk-new"]);
    let mut old = [env.start_ready_worker().await?, env.start_ready_worker().await?];
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    publish_jobs(&producer, jobs).await?;
    for worker in &old {
        worker.wait_for_log(CLOSED).await?;
    }
    expect_one_counted_attempt(&env, &producer, jobs).await?;
    env.set("STABILITY_API_KEY", "sk-new");
    let new = env.start_ready_worker().await?;
    expect_all_completed(&env, &mut events, jobs).await?;
    assert!(!new.log().contains(CLOSED));
    expect_gate_reason(&old[0], "unauthorized", "the API refuses the key").await?;
    for worker in &mut old {
        worker.signal(Signal::TERM);
        assert!(worker.wait_for_exit().await?.success());
    }
    let keys = env.query_rows("SELECT key_hash, refused_detail FROM account_keys").await?;
    assert!(keys.len() == 2 && !json!(keys).to_string().contains("sk-"), "{keys:?}");
    Ok(())
}

#[tokio::test]
async fn refused_free_requests_do_not_close_the_gate() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_CHECK_BALANCE", "true");
    env.sandbox.set_balance_status(Some(401));
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;
    let (status, body) = worker.probe("readyz").await?;
    assert_eq!((status, &body["status"], &body["gate_closed"]), (200, &json!("ok"), &json!([])));
    assert!(body["api_key"].as_str().is_some_and(|problem| problem.contains("401")), "{body}");
    Ok(())
}

/// With `STABILITY_CHECK_BALANCE`, a job that the credits do not cover waits for its own next attempt.
#[tokio::test]
async fn shortfall_found_by_the_balance_check_concerns_one_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_CHECK_BALANCE", "true");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    env.sandbox.set_credits(5.0);
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear", "An owl"], &json!({}))).await?;
    assert_eq!(events.wait_for_data("failed").await?["error"]["code"], "insufficient_credits");
    producer.publish(&command(2, &["A cat"], &json!({}))).await?;
    events.wait_for("completed").await?;
    assert!(!worker.log().contains(CLOSED));
    Ok(())
}

/// Jobs that the credits do not cover wait too while the gate is closed, instead of failing one after the other.
#[tokio::test]
async fn probe_does_not_expose_the_backlog_to_the_balance_check() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("STABILITY_CHECK_BALANCE", "true");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    env.inject_fault("status=402", None)?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    assert_eq!(events.wait_for_data("failed").await?["error"]["code"], "insufficient_credits");
    worker.wait_for_log(CLOSED).await?;
    // Enough for the probe and for one of three images.
    env.sandbox.set_credits(2.0);
    for project in 2..=4 {
        producer.publish(&command(project, &["A bear", "An owl", "A cat"], &json!({}))).await?;
    }
    make_probe_due(&env).await?;
    // Its three images are requested at the same time.
    env.wait_for_requests(2).await?;
    producer.wait_for_waiting_commands(3).await?;
    assert_eq!(env.query_rows("SELECT id FROM jobs WHERE status = 'failed'").await?.len(), 1);
    env.sandbox.clear_faults();
    env.sandbox.set_credits(100.0);
    make_probe_due(&env).await?;
    for _ in 2..=4 {
        assert_eq!(events.wait_for_data("completed").await?["succeeded"], 3);
    }
    Ok(())
}

/// The API charges for an image that it withholds, so it accepts the account.
#[tokio::test]
async fn withheld_image_opens_the_gate() -> Result<()> {
    let env = TestEnv::new().await?;
    env.sandbox.set_credits(0.0);
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox [fault:filtered]"], &json!({}))).await?;
    worker.wait_for_log(CLOSED).await?;
    env.sandbox.set_credits(100.0);
    make_probe_due(&env).await?;
    assert_eq!(events.wait_for_data("failed").await?["failures"][0]["code"], "content_policy");
    worker.wait_for_log(OPENED).await
}

/// The images of a refused account wait: they are neither taken from the cache nor translated.
#[tokio::test]
async fn refused_account_uses_neither_cache_nor_translation() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let gemini = env.start_gemini().await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear"], &json!({}))).await?;
    events.wait_for("completed").await?;
    env.sandbox.set_credits(0.0);
    producer.publish(&command(2, &["A fox", "A bear"], &json!({}))).await?;
    worker.wait_for_log(CLOSED).await?;
    producer.publish(&command(3, &["一隻狐狸"], &json!({}))).await?;
    producer.wait_for_waiting_commands(2).await?;
    assert_eq!(gemini.ledger().requests, 0);
    let cached = env.query_rows("SELECT id FROM assets WHERE status = 'completed'").await?;
    assert_eq!(cached.len(), 2, "those of the first job");
    env.sandbox.set_credits(100_000.0);
    make_probe_due(&env).await?;
    for _ in 0..2 {
        assert_eq!(events.wait_for_data("completed").await?["from_cache"], 0);
    }
    Ok(())
}

#[tokio::test]
async fn commands_report_a_refused_account() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    env.sandbox.set_credits(0.0);
    let generate = ["generate", "--job-id", "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10", "--project", "1", "A fox"];
    for _ in 0..2 {
        let refused = env.run(&generate).await?;
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{error}");
        assert!(error.contains("the account gate is closed: the account lacks credits since 20"), "{error}");
        assert!(error.contains("repeat the command with the job id 0199f3a2"), "{error}");
    }
    assert_eq!(env.sandbox.ledger().requests, 1, "the second run asks for the credits only");
    let attempts = env.query_rows("SELECT status, attempts FROM jobs").await?;
    assert_eq!(attempts, [json!({"status": "waiting", "attempts": 1})]);
    // A producer needs no key.
    for key in [API_KEY, ""] {
        env.set("STABILITY_API_KEY", key);
        let note = text(&env.run(&["submit", "--project", "1", "A bear"]).await?.stderr);
        assert!(note.contains("the account gate is closed: the account lacks credits since"), "{note}");
    }
    env.set("STABILITY_API_KEY", "sk-other");
    let note = text(&env.run(&["submit", "--project", "1", "A bear"]).await?.stderr);
    assert!(!note.contains("closed"), "another key is not refused: {note}");
    env.set("STABILITY_API_KEY", API_KEY);
    let checked = env.run(&["doctor"]).await?;
    let doctor = text(&checked.stdout);
    assert!(doctor.contains("closed: the account lacks credits since") && !checked.status.success(), "{doctor}");
    env.sandbox.set_credits(10.0);
    let completed = env.run(&generate).await?;
    assert!(completed.status.success(), "{}", text(&completed.stderr));
    let doctor = text(&env.run(&["doctor"]).await?.stdout);
    assert!(doctor.lines().any(|line| line.contains("gate") && line.ends_with("open")), "{doctor}");
    Ok(())
}

/// The credits run out and come back several times, while operators pause and resume.
#[tokio::test]
async fn backlog_survives_a_flapping_gate() -> Result<()> {
    let jobs = backlog_size(30);
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.set("WORKER_JOB_RETRY_DELAYS", "1s");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "5");
    env.sandbox.set_credits(0.0);
    let workers = [env.start_ready_worker().await?, env.start_ready_worker().await?];
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    publish_jobs(&producer, jobs).await?;
    for round in 1..=3_u32 {
        let closed = async || workers.iter().all(|worker| worker.log().contains(CLOSED)).then_some(());
        wait_until("the gate to close", WAIT_TIMEOUT, closed).await?;
        if round == 2 {
            anyhow::ensure!(env.run(&["pause"]).await?.status.success());
        }
        // Enough for six more images.
        env.sandbox.set_credits(12.0);
        make_probe_due(&env).await?;
        if round == 2 {
            anyhow::ensure!(env.run(&["resume"]).await?.status.success());
        }
        let spent = async || (env.sandbox.ledger().charged == 6 * round).then_some(());
        wait_until("six more images", WAIT_TIMEOUT, spent).await.with_context(|| format!("round {round}"))?;
        let refused = async || {
            let keys = env.query_rows("SELECT status FROM account_keys").await.ok()?;
            (keys == [json!({"status": "refused"})]).then_some(())
        };
        wait_until("the gate to close again", WAIT_TIMEOUT, refused).await?;
    }
    env.sandbox.set_credits(100_000.0);
    make_probe_due(&env).await?;
    expect_all_completed(&env, &mut events, jobs).await?;
    let attempts = env.query_rows("SELECT attempts FROM jobs").await?;
    let counted: i64 = attempts.iter().filter_map(|job| job["attempts"].as_i64()).sum();
    assert_eq!(counted, 4, "one for each time that the gate was closed");
    assert_eq!(producer.ready_count("assets.generate.dead").await?, 0);
    Ok(())
}

/// Creates an environment whose programs read the API key from a file; returns the file.
async fn env_with_key_file() -> Result<(TestEnv, std::path::PathBuf)> {
    let mut env = TestEnv::new().await?;
    let file = env.folder().join("stability-api-key");
    std::fs::write(&file, format!("{API_KEY}\n"))?;
    env.set("STABILITY_API_KEY", "");
    env.set("STABILITY_API_KEY_FILE", file.display().to_string());
    Ok((env, file))
}

/// A worker notices that its key was replaced in its file, without a restart.
#[tokio::test]
async fn key_replaced_in_its_file_opens_the_gate() -> Result<()> {
    let (env, file) = env_with_key_file().await?;
    env.sandbox.set_keys(&["sk-new"]);
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    worker.wait_for_log(CLOSED).await?;
    // A file that cannot be used changes nothing.
    std::fs::write(&file, "")?;
    worker.wait_for_log("the former key stays in use").await?;
    std::fs::write(&file, "sk-new")?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["cost_usd"], json!(0.02));
    worker.wait_for_log("API key replaced by the one in its file").await?;
    assert!(!worker.log().contains("sk-"), "{}", worker.log());
    Ok(())
}

/// The key is replaced and revoked during a job: neither an attempt nor an image is lost, and the gate stays open.
#[tokio::test]
async fn key_replaced_during_a_job_costs_no_attempt() -> Result<()> {
    let (mut env, file) = env_with_key_file().await?;
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["A fox [fault:slow=1000]", "A bear", "An owl"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    wait_until("a request", WAIT_TIMEOUT, async || (env.sandbox.ledger().requests == 1).then_some(())).await?;
    std::fs::write(&file, "sk-new")?;
    env.sandbox.set_keys(&["sk-new"]);
    assert_eq!(events.wait_for_data("completed").await?["succeeded"], 3);
    assert_eq!(env.sandbox.ledger().charged, 3);
    assert!(!worker.log().contains(CLOSED), "{}", worker.log());
    assert_eq!(env.query_rows("SELECT attempts FROM jobs").await?, [json!({"attempts": 0})]);
    Ok(())
}
