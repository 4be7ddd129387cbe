//! Retention: ended jobs are purged by the command line and by workers.

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{Database, TestEnv, WAIT_TIMEOUT, Worker, command};
use serde_json::{Value, json};

/// Purges all ended jobs with their files.
const PURGE_WITH_FILES: [&str; 4] = ["purge", "--older-than", "0s", "--files"];

/// Runs a command with `--json` and returns its output.
async fn run_json(env: &TestEnv, arguments: &[&str]) -> Result<Value> {
    let output = env.run(&[arguments, &["--json"]].concat()).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).context(error)
}

/// Marks the terminal events of all jobs as published, as if a queue had received them.
async fn mark_published(env: &TestEnv) -> Result<()> {
    env.execute("UPDATE jobs SET published_at = finished_at").await
}

async fn statuses(env: &TestEnv) -> Result<Vec<Value>> {
    let rows = env.query_rows("SELECT status FROM jobs ORDER BY created_at").await?;
    Ok(rows.into_iter().map(|row| row["status"].clone()).collect())
}

#[tokio::test]
async fn purge_removes_what_its_dry_run_said_on_sqlite() -> Result<()> {
    purge_removes_what_its_dry_run_said(Database::Sqlite).await
}

#[tokio::test]
async fn purge_removes_what_its_dry_run_said_on_postgres() -> Result<()> {
    purge_removes_what_its_dry_run_said(Database::Postgres).await
}

async fn purge_removes_what_its_dry_run_said(database: Database) -> Result<()> {
    let mut env = TestEnv::with_database(database).await?;
    env.make_images_small();
    let (worker, producer, mut events) = env.start_worker_and_events().await?;
    let first = command(1, &["A fox", "A bear"], &json!({}));
    let failed = command(1, &["A gory battle"], &json!({}));
    let other = command(2, &["An owl"], &json!({}));
    let unpublished = command(1, &["A lynx"], &json!({}));
    for (command, end) in
        [(&first, "completed"), (&failed, "failed"), (&other, "completed"), (&unpublished, "completed")]
    {
        producer.publish(command).await?;
        events.wait_for_data(end).await?;
    }
    worker.wait_for_log("job completed").await?;
    let is_published = async || {
        let rows = env.query_rows("SELECT id FROM jobs WHERE published_at IS NULL").await.ok()?;
        rows.is_empty().then_some(())
    };
    wait::wait_until("all events to be recorded as published", WAIT_TIMEOUT, is_published).await?;
    // The event of the last job counts as not published, and one job has not ended.
    env.execute("UPDATE jobs SET published_at = NULL WHERE total = 1 AND id IN (SELECT job_id FROM assets WHERE status = 'completed' AND project_id = 1)").await?;
    let nothing = run_json(&env, &["purge", "--older-than", "1h", "--files"]).await?;
    assert_eq!(nothing, json!({"dry_run": false, "jobs": 0, "images": 0, "files": 0, "file_bytes": 0}));

    let of_project = ["purge", "--older-than", "0s", "--project", "1", "--files"];
    let mut said = run_json(&env, &[&of_project[..], &["--dry-run"]].concat()).await?;
    assert_eq!((&said["jobs"], &said["images"], &said["files"]), (&json!(2), &json!(3), &json!(2)));
    let costs = run_json(&env, &["costs"]).await?;
    let removed = run_json(&env, &of_project).await?;
    said["dry_run"] = json!(false);
    assert_eq!(removed, said);
    for (path, is_kept) in [
        ("projects/1/assets/image_001.png", false),
        ("projects/1/assets/image_002.png", false),
        ("projects/2/assets/image_001.png", true),
    ] {
        assert_eq!(env.stored_path(path).exists(), is_kept, "{path}");
    }
    assert_eq!(statuses(&env).await?, ["purged", "purged", "completed", "completed"]);
    let kept = "SELECT status FROM jobs WHERE status = 'purged' AND (command IS NOT NULL OR style IS NOT NULL \
                OR terminal_event IS NOT NULL OR error_message IS NOT NULL)";
    assert_eq!(env.query_rows(kept).await?.len(), 0);
    assert_eq!(env.query_rows("SELECT id FROM assets").await?.len(), 2);
    assert_eq!(run_json(&env, &["costs"]).await?, costs, "costs outlive the jobs");
    assert_eq!(run_json(&env, &["jobs", "list"]).await?.as_array().map(Vec::len), Some(2));
    // Without --files, the files stay.
    run_json(&env, &["purge", "--older-than", "0s"]).await?;
    assert!(env.stored_path("projects/2/assets/image_001.png").exists());
    assert_eq!(statuses(&env).await?, ["purged", "purged", "purged", "completed"]);

    // Late commands have no effect, also those of failed jobs; another command with the id is still a conflict.
    let requests = env.sandbox.ledger().requests;
    producer.publish(&first).await?;
    producer.publish(&failed).await?;
    let mut conflict = command(1, &["Another"], &json!({}));
    conflict["job_id"] = first["job_id"].clone();
    producer.publish(&conflict).await?;
    assert_eq!(producer.take_dead_letter().await?.header("x-rejected-reason").as_deref(), Some("job_id_conflict"));
    let handled = async || {
        let metrics = worker.metrics().await.ok()?;
        (metrics.value("asset_worker_jobs_total", &[("outcome", "purged")]) == Some(2.0)).then_some(())
    };
    wait::wait_until("the late commands to be acknowledged", WAIT_TIMEOUT, handled).await?;
    assert_eq!(env.sandbox.ledger().requests, requests);
    assert_eq!(producer.ready_count("assets.generate").await?, 0);

    // Neither are its images in the cache.
    producer.publish(&command(1, &["A fox"], &json!({"cache": "prefer"}))).await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!((&data["from_cache"], &data["cost_usd"]), (&json!(0), &json!(0.02)));
    let retried = env.run(&["jobs", "retry", failed["job_id"].as_str().context("job_id is missing")?]).await?;
    assert_eq!(retried.status.code(), Some(64));
    Ok(())
}

#[tokio::test]
async fn worker_purges_by_its_settings_and_forgets_ids() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    env.generate(&command(2, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    mark_published(&env).await?;
    env.execute("UPDATE jobs SET finished_at = '2020-01-01T00:00:00Z' WHERE project_id = 1").await?;
    // Without the setting, nothing is removed.
    drop(env.start_ready_worker().await?);
    assert_eq!(statuses(&env).await?, ["completed", "completed"]);
    env.set("WORKER_RETENTION", "365d");
    env.set("WORKER_RETENTION_FILES", "true");
    let worker = env.start_ready_worker().await?;
    worker.wait_for_log("ended jobs purged").await?;
    drop(worker);
    assert_eq!(statuses(&env).await?, ["purged", "completed"]);
    assert!(!env.stored_path("projects/1/assets/image_001.png").exists());
    assert!(env.stored_path("projects/2/assets/image_001.png").exists());

    env.execute("UPDATE jobs SET purged_at = '2020-01-01T00:00:00Z' WHERE status = 'purged'").await?;
    let _worker = env.start_ready_worker().await?;
    let is_forgotten = async || (statuses(&env).await.ok()? == ["completed"]).then_some(());
    wait::wait_until("the purged job to be forgotten", WAIT_TIMEOUT, is_forgotten).await?;
    for (name, value) in [("WORKER_RETENTION", "0s"), ("WORKER_RETENTION_FILES", "perhaps")] {
        env.set(name, value);
        let refused = env.run(&["run"]).await?;
        assert_eq!(refused.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(&format!("{name}: \"{value}\" is not allowed")));
        env.set(name, "");
    }
    Ok(())
}

/// Starts to purge a job of one image; the purge pauses when the file is removed and the row is not.
async fn start_purge_that_pauses() -> Result<(TestEnv, Worker)> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    mark_published(&env).await?;
    env.set("ASSET_WORKER_PAUSE_AT", "after_purged_files");
    let purge = env.start(&PURGE_WITH_FILES)?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    Ok((env, purge))
}

#[tokio::test]
async fn killed_purge_is_completed_by_the_next_one() -> Result<()> {
    let (env, mut killed) = start_purge_that_pauses().await?;
    killed.kill_at_failpoint("after_purged_files").await?;
    // The file is removed, the row is not: it is no cache hit.
    assert!(!env.stored_path("projects/1/assets/image_001.png").exists());
    let differences = env.run(&["storage", "verify", "--json"]).await?;
    assert_eq!(differences.status.code(), Some(1));
    let differences: Value = serde_json::from_slice(&differences.stdout)?;
    assert_eq!(differences["rows_without_files"][0]["path"], "projects/1/assets/image_001.png");
    let made = env.generate(&command(1, &["A fox"], &json!({"cache": "prefer"}))).await?.expect_data("completed")?;
    assert_eq!(made["from_cache"], 0);

    // The killed process still has the turn.
    env.execute("UPDATE sweeps SET until_ms = 0 WHERE name = 'purge'").await?;
    assert_eq!(run_json(&env, &PURGE_WITH_FILES).await?["jobs"], 1);
    assert_eq!(env.run(&["storage", "verify"]).await?.status.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn interrupted_purge_gives_its_turn_back() -> Result<()> {
    let (env, mut interrupted) = start_purge_that_pauses().await?;
    interrupted.wait_for_log("paused at a failpoint").await?;
    interrupted.signal(Signal::INT);
    assert_eq!(interrupted.wait_for_exit().await?.code(), Some(1));
    assert!(interrupted.log().contains("stopped; repeat this to continue"), "{}", interrupted.log());
    let output = env.run(&PURGE_WITH_FILES).await?;
    assert!(!String::from_utf8_lossy(&output.stderr).contains("another process"), "the turn was given back");
    assert_eq!(statuses(&env).await?, ["purged"]);
    Ok(())
}

#[tokio::test]
async fn jobs_whose_files_or_messages_are_left_stay() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    for project in 1..=3 {
        env.generate(&command(project, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    }
    mark_published(&env).await?;
    // A directory cannot be removed as a file.
    let file = env.stored_path("projects/1/assets/image_001.png");
    std::fs::remove_file(&file)?;
    std::fs::create_dir_all(file.join("below"))?;
    env.execute("INSERT INTO outbox SELECT id, 0, '{}' FROM jobs WHERE project_id = 2").await?;
    let output = env.run(&[&PURGE_WITH_FILES[..], &["--json"]].concat()).await?;
    assert_eq!(output.status.code(), Some(69));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("1 jobs were not purged") && error.contains("file not removed"), "{error}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout)?["jobs"], 1);
    assert_eq!(statuses(&env).await?, ["completed", "completed", "purged"]);
    env.execute("DELETE FROM outbox").await?;
    std::fs::remove_dir_all(&file)?;
    assert_eq!(run_json(&env, &PURGE_WITH_FILES).await?["jobs"], 2);

    // Without the storage of the files, nothing is removed.
    env.generate(&command(4, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    mark_published(&env).await?;
    let elsewhere = env.folder().join("elsewhere");
    env.set("ASSET_STORAGE_URL", format!("file://{}", elsewhere.display()));
    let refused = env.run(&PURGE_WITH_FILES).await?;
    assert_eq!(refused.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("ASSET_STORAGE_URL: the folder does not exist"));
    assert_eq!(statuses(&env).await?.last(), Some(&json!("completed")));
    Ok(())
}

#[tokio::test]
async fn images_of_a_purged_retry_are_not_made_again() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    let job = command(1, &["A fox [fault:status=400 x1]"], &json!({}));
    producer.publish(&job).await?;
    events.wait_for_data("failed").await?;
    let retry = ["jobs", "retry", "--all-failed", "--since", "1h"];
    let first = run_json(&env, &retry).await?;
    events.wait_for_data("completed").await?;
    let retry_id = first[0]["job_id"].as_str().context("job_id is missing")?.to_owned();
    // The event of the first job is not published, so that only its retry is purged.
    let is_published = async || {
        let rows = env.query_rows("SELECT id FROM jobs WHERE published_at IS NULL").await.ok()?;
        rows.is_empty().then_some(())
    };
    wait::wait_until("both events to be recorded as published", WAIT_TIMEOUT, is_published).await?;
    env.execute("UPDATE jobs SET published_at = NULL WHERE retry_of IS NULL").await?;
    assert_eq!(run_json(&env, &["purge", "--older-than", "0s"]).await?["jobs"], 1);
    assert_eq!(run_json(&env, &retry).await?, json!([]));
    let again = run_json(&env, &["jobs", "retry", job["job_id"].as_str().context("job_id is missing")?]).await?;
    assert_ne!(again[0]["job_id"], json!(retry_id), "its id belongs to the purged retry");
    events.wait_for_data("completed").await?;
    // The id is kept as long as the first job.
    env.execute("UPDATE jobs SET purged_at = '2020-01-01T00:00:00Z' WHERE status = 'purged'").await?;
    run_json(&env, &["purge", "--older-than", "1h"]).await?;
    assert!(statuses(&env).await?.contains(&json!("purged")));
    Ok(())
}

#[tokio::test]
async fn only_one_process_purges_at_a_time() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    mark_published(&env).await?;
    let go_on = env.folder().join("go-on");
    env.set("ASSET_WORKER_PAUSE_AT", "after_purged_files");
    env.set("ASSET_WORKER_PAUSE_UNTIL", go_on.display().to_string());
    let purge = ["purge", "--older-than", "0s", "--json"];
    let mut first = env.start(&purge)?;
    first.wait_for_log("paused at a failpoint").await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let mut second = env.start(&purge)?;
    second.wait_for_log("another process is purging").await?;
    std::fs::write(&go_on, "")?;
    for (process, jobs) in [(&mut first, 1), (&mut second, 0)] {
        assert_eq!(process.wait_for_exit().await?.code(), Some(0), "{}", process.log());
        assert!(process.log().contains(&format!("\"jobs\": {jobs},")), "{}", process.log());
    }
    Ok(())
}

#[tokio::test]
async fn unused_translations_and_old_dead_letters_are_purged_on_request() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let _gemini = env.start_gemini().await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    for description in ["一座寧靜的山景", "阿里山的日出"] {
        env.generate(&command(1, &[description], &json!({}))).await?.expect_data("completed")?;
    }
    env.execute("UPDATE translations SET created_at = '2020-01-01T00:00:00Z', used_at = NULL").await?;
    // The translation of the first text is used again.
    env.generate(&command(1, &["一座寧靜的山景"], &json!({}))).await?.expect_data("completed")?;
    producer.publish_bytes(b"not JSON", None).await?;
    worker.wait_for_log("message is not a valid command").await?;
    let dead = async || (producer.ready_count("assets.generate.dead").await.ok()? == 1).then_some(());
    wait::wait_until("the dead letter", WAIT_TIMEOUT, dead).await?;

    let purge = |age| ["purge", "--older-than", age, "--translations", "--dead-letters"];
    let said = run_json(&env, &[&purge("30d")[..], &["--dry-run"]].concat()).await?;
    assert_eq!((&said["translations"], &said["dead_letters"]), (&json!(1), &json!(0)));
    let removed = run_json(&env, &purge("30d")).await?;
    assert_eq!((&removed["translations"], &removed["dead_letters"]), (&json!(1), &json!(0)));
    let left = env.query_rows("SELECT original FROM translations").await?;
    assert_eq!(left, [json!({"original": "一座寧靜的山景"})]);
    let removed = run_json(&env, &purge("0s")).await?;
    assert_eq!((&removed["translations"], &removed["dead_letters"]), (&json!(1), &json!(1)));
    assert_eq!(producer.ready_count("assets.generate.dead").await?, 0);
    let refused = env.run(&["purge", "--older-than", "0s", "--translations", "--project", "1"]).await?;
    assert_eq!(refused.status.code(), Some(64));
    Ok(())
}

#[tokio::test]
async fn files_in_a_bucket_are_purged_and_verified() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let _bucket = env.start_bucket().await?;
    env.generate(&command(1, &["A fox", "A bear"], &json!({}))).await?.expect_data("completed")?;
    assert_eq!(run_json(&env, &["storage", "verify"]).await?["files"], 2);
    mark_published(&env).await?;
    // Without --files, the rows alone are removed.
    run_json(&env, &["purge", "--older-than", "0s"]).await?;
    let orphans = env.run(&["storage", "verify", "--json"]).await?;
    assert_eq!(orphans.status.code(), Some(1));
    let orphans: Value = serde_json::from_slice(&orphans.stdout)?;
    let paths = json!(["projects/1/assets/image_001.png", "projects/1/assets/image_002.png"]);
    assert_eq!(orphans["files_without_rows"], paths);
    env.generate(&command(2, &["A fox", "A bear"], &json!({}))).await?.expect_data("completed")?;
    mark_published(&env).await?;
    assert_eq!(run_json(&env, &PURGE_WITH_FILES).await?["files"], 2);
    let left = env.run(&["storage", "verify", "--json"]).await?;
    assert_eq!(serde_json::from_slice::<Value>(&left.stdout)?["files"], 2);
    Ok(())
}
