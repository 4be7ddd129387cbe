//! Making images again: `jobs retry` for those that failed, `jobs redo` for one that is not wanted.

use std::process::Stdio;

use anyhow::{Context, Result};
use integration_tests::{Database, EventStream, TestEnv, command, failure_codes, metadata};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Runs a subcommand of `jobs` with `--json`; its output, or what it prints to standard error.
async fn jobs(env: &TestEnv, arguments: &[&str]) -> Result<Result<Value, String>> {
    let output = env.run(&[&["jobs"], arguments, &["--json"]].concat()).await?;
    if output.status.success() {
        return Ok(Ok(serde_json::from_slice(&output.stdout)?));
    }
    assert_eq!(output.status.code(), Some(64));
    Ok(Err(String::from_utf8(output.stderr)?))
}

/// An environment whose images are tried twice and whose jobs are not.
async fn new_env(database: Database) -> Result<TestEnv> {
    let mut env = TestEnv::with_database(database).await?;
    env.make_images_small();
    env.set("STABILITY_RETRY_DELAYS", "0s");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    Ok(env)
}

/// The first terminal event of the job with this id.
async fn wait_for_job(events: &mut EventStream, id: &Value) -> Result<Value> {
    loop {
        let seen = events.wait_for("completed").await?;
        let data = &seen.last().context("an event")?.json()["data"];
        if data["job_id"] == *id {
            return Ok(data.clone());
        }
    }
}

/// A job whose second image failed, whose fourth was refused, and whose others are completed.
async fn run_job_with_failures(env: &TestEnv) -> Result<Value> {
    let descriptions = ["A fox", "A fox [fault:status=500 x2]", "An owl", "A gory battle", "A bear"];
    let expires_at = "2100-01-01T00:00:00Z";
    let config = json!({"min_success_rate": 0.5, "seed": 7, "steps": 33, "expires_at": expires_at});
    let data = env.generate(&command(5, &descriptions, &config)).await?.expect_data("completed")?;
    assert_eq!(failure_codes(&data), ["provider_unavailable", "content_policy"]);
    assert!(data.get("retry_of").is_none() && data["assets"][0].get("original_index").is_none(), "{data}");
    Ok(data)
}

async fn failed_images_are_made_again(database: Database) -> Result<()> {
    let env = new_env(database).await?;
    let data = run_job_with_failures(&env).await?;
    let id = data["job_id"].as_str().context("an id")?;
    let first = jobs(&env, &["retry", id]).await?.expect("an image failed");
    assert_eq!((&first[0]["retry_of"], &first[0]["images"]), (&data["job_id"], &json!([2])));
    assert_eq!(jobs(&env, &["retry", id]).await?.expect("an image failed"), first, "a second click has no effect");
    let requests = env.sandbox.ledger().requests;

    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    let retried = wait_for_job(&mut events, &first[0]["job_id"]).await?;
    let (project, total) = (&retried["project_id"], &retried["total"]);
    assert_eq!((project, total, &retried["retry_of"]), (&json!(5), &json!(1), &data["job_id"]));
    let asset = &retried["assets"][0];
    assert_eq!((&asset["index"], &asset["original_index"]), (&json!(1), &json!(2)));
    // The seed of its first index: with another one it could be the picture of the first image.
    assert_eq!(asset["seed"], 8);
    let rows = env.query_rows("SELECT metadata FROM assets WHERE original_index = 2").await?;
    assert_eq!(metadata(&rows[0])["steps"], 33);
    assert_eq!(env.sandbox.ledger().requests, requests + 1, "also if its command is delivered twice");
    let commands = env.query_rows("SELECT command FROM jobs WHERE retry_of IS NOT NULL").await?;
    assert_eq!(commands.len(), 1);
    assert!(!commands[0]["command"].to_string().contains("expires_at"), "{commands:?}");

    let new_id = first[0]["job_id"].as_str().context("an id")?;
    let shown = jobs(&env, &["show", new_id]).await?.expect("it is known");
    assert_eq!((&shown["retry_of"], &shown["assets"][0]["original_index"]), (&json!(id), &json!(2)));
    let shown = String::from_utf8(env.run(&["jobs", "show", new_id]).await?.stdout)?;
    assert!(shown.contains(&format!("makes again     images 2 of job {id}")), "{shown}");

    // The next retry is another job, here with the refused image.
    let next = jobs(&env, &["retry", id, "--include-refused"]).await?.expect("images failed");
    assert_eq!(next[0]["images"], json!([2, 4]));
    assert_ne!(next[0]["job_id"], first[0]["job_id"]);
    let data = wait_for_job(&mut events, &next[0]["job_id"]).await?;
    assert_eq!((&data["failures"][0]["index"], &data["failures"][0]["original_index"]), (&json!(2), &json!(4)));
    Ok(())
}

#[tokio::test]
async fn failed_images_are_made_again_on_sqlite() -> Result<()> {
    failed_images_are_made_again(Database::Sqlite).await
}

#[tokio::test]
async fn failed_images_are_made_again_on_postgres() -> Result<()> {
    failed_images_are_made_again(Database::Postgres).await
}

/// Cancelled jobs, jobs of other projects, refused images and jobs that are being made again are left out.
#[tokio::test]
async fn all_failed_jobs_are_retried_once() -> Result<()> {
    let env = new_env(Database::Postgres).await?;
    let failed = command(5, &["A fox [fault:status=500 x2]"], &json!({}));
    for job in [
        &failed,
        &command(6, &["A bear [fault:status=500 x2]"], &json!({})),
        &command(5, &["A gory battle"], &json!({})),
        &command(5, &["An owl"], &json!({"expires_at": "2001-01-01T00:00:00Z"})),
    ] {
        env.generate(job).await?.expect_data("failed")?;
    }
    let all = ["retry", "--all-failed", "--since", "10000y", "--project", "5"];
    let retries = jobs(&env, &all).await?.expect("jobs failed");
    assert_eq!(retries.as_array().map(Vec::len), Some(1), "{retries}");
    assert_eq!(retries[0]["retry_of"], failed["job_id"]);
    // Its command could have been lost.
    assert_eq!(jobs(&env, &all).await?.expect("a job failed"), retries);
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    wait_for_job(&mut events, &retries[0]["job_id"]).await?;
    assert_eq!(jobs(&env, &all).await?.expect("nothing to do is no error"), json!([]));
    let others = jobs(&env, &["retry", "--all-failed", "--since", "1h"]).await?.expect("jobs failed");
    assert_eq!(others.as_array().map(Vec::len), Some(1), "{others}");
    wait_for_job(&mut events, &others[0]["job_id"]).await?;
    let refused = jobs(&env, &["retry", "--all-failed", "--since", "1h", "--include-refused"]).await?;
    assert_eq!(refused.expect("jobs failed").as_array().map(Vec::len), Some(1));
    Ok(())
}

#[tokio::test]
async fn unwanted_image_is_made_again_with_another_seed() -> Result<()> {
    let env = new_env(Database::Postgres).await?;
    let job = command(5, &["A fox", "A bear", "An owl"], &json!({"seed": 7, "cache": "prefer"}));
    let id = job["job_id"].as_str().context("an id")?;
    env.generate(&job).await?.expect_data("completed")?;
    let chosen = jobs(&env, &["redo", id, "--image", "3"]).await?.expect("it is completed");
    assert_eq!(jobs(&env, &["redo", id, "--image", "3"]).await?.expect("it is completed"), chosen);
    // A seed below the index, and the seed that it had, which makes the same picture without the cache.
    let given = jobs(&env, &["redo", id, "--image", "3", "--seed", "1"]).await?.expect("it is completed");
    let same = jobs(&env, &["redo", id, "--image", "3", "--seed", "9"]).await?.expect("it is completed");
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    // The jobs run at the same time, and end in any order.
    let ids = [&chosen, &given, &same].map(|redo| redo[0]["job_id"].clone());
    let mut ended: Vec<Value> = Vec::new();
    while !ids.iter().all(|id| ended.iter().any(|data| data["job_id"] == *id)) {
        ended.push(events.wait_for_data("completed").await?);
    }
    let mut seeds = Vec::new();
    for id in ids {
        let data = ended.iter().find(|data| data["job_id"] == id).context("an event")?;
        assert_eq!((&data["retry_of"], &data["assets"][0]["original_index"]), (&job["job_id"], &json!(3)));
        assert_eq!((&data["total"], &data["from_cache"]), (&json!(1), &json!(0)));
        let query = format!("SELECT metadata FROM assets WHERE job_id = '{}'", id.as_str().unwrap_or(""));
        let row = metadata(&env.query_rows(&query).await?[0]);
        assert_eq!(row["description"], "An owl");
        seeds.push(row["seed"].as_u64().context("a seed")?);
    }
    assert_eq!(seeds[1..], [1, 9]);
    assert!(![1, 9].contains(&seeds[0]), "{seeds:?}");
    Ok(())
}

#[tokio::test]
async fn jobs_with_nothing_to_make_again_are_refused_by_name() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let data = run_job_with_failures(&env).await?;
    let id = data["job_id"].as_str().context("an id")?;
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    let done = command(5, &["A bear"], &json!({}));
    env.generate(&done).await?.expect_data("completed")?;
    let refused = command(5, &["A gory battle"], &json!({}));
    env.generate(&refused).await?.expect_data("failed")?;
    let (done, refused) = (done["job_id"].as_str().unwrap_or(""), refused["job_id"].as_str().unwrap_or(""));
    for (arguments, expected) in [
        (vec!["retry", unknown], format!("job {unknown} is not in the database")),
        (vec!["retry", done], format!("no image of job {done} has failed")),
        (vec!["retry", refused], format!("all failed images of job {refused} were refused by content policy")),
        (vec!["redo", id, "--image", "9"], format!("job {id} has no image 9; it has the images 1 to 5")),
        (vec!["redo", id, "--image", "2"], format!("image 2 of job {id} is not completed")),
        (vec!["redo", id, "--image", "1", "--seed", "0"], "seed 0 is not allowed".to_owned()),
        (vec!["retry", "--all-failed"], "--since".to_owned()),
    ] {
        let error = jobs(&env, &arguments).await?.expect_err("there is nothing to make again");
        assert!(error.contains(&expected), "{error}");
    }
    assert!(env.query_rows("SELECT id FROM jobs WHERE retry_of IS NOT NULL").await?.is_empty());
    Ok(())
}

/// Before it ends, a retry is not another one: its images are not lost without a word.
#[tokio::test]
async fn retry_with_other_images_waits_for_the_first_one() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let data = run_job_with_failures(&env).await?;
    let id = data["job_id"].as_str().context("an id")?;
    jobs(&env, &["retry", id]).await?.expect("an image failed");
    let error = jobs(&env, &["retry", id, "--include-refused"]).await?.expect_err("the first one waits");
    assert!(error.contains(&format!("makes other images of job {id} again")), "{error}");
    Ok(())
}

/// Its images keep their first seeds.
#[tokio::test]
async fn retry_that_fails_is_retried_itself() -> Result<()> {
    let env = new_env(Database::Postgres).await?;
    let job = command(5, &["A fox", "A fox [fault:status=500 x4]"], &json!({"seed": 7, "min_success_rate": 0.5}));
    env.generate(&job).await?.expect_data("completed")?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let first = jobs(&env, &["retry", job["job_id"].as_str().context("an id")?]).await?.expect("an image failed");
    assert_eq!(events.wait_for_data("failed").await?["job_id"], first[0]["job_id"]);
    let second = jobs(&env, &["retry", "--all-failed", "--since", "1h"]).await?.expect("the retry failed");
    assert_eq!((&second[0]["retry_of"], &second[0]["images"]), (&first[0]["job_id"], &json!([1])));
    assert_eq!(wait_for_job(&mut events, &second[0]["job_id"]).await?["assets"][0]["seed"], 8);
    Ok(())
}

/// A job that has not ended is not made again: its images may still succeed.
#[tokio::test]
async fn job_that_waits_is_not_retried() -> Result<()> {
    let env = new_env(Database::Postgres).await?;
    let data = run_job_with_failures(&env).await?;
    let id = data["job_id"].as_str().context("an id")?;
    let retry = jobs(&env, &["retry", id]).await?.expect("an image failed");
    let waiting = retry[0]["job_id"].as_str().context("an id")?;
    let error = jobs(&env, &["retry", waiting]).await?.expect_err("it waits");
    assert!(error.contains(&format!("job {waiting} has not ended")), "{error}");
    Ok(())
}

/// The row is stored but its command is not sent: a worker sends it.
#[tokio::test]
async fn command_of_an_interrupted_retry_is_published_by_a_worker() -> Result<()> {
    let env = new_env(Database::Postgres).await?;
    let data = run_job_with_failures(&env).await?;
    let id = data["job_id"].as_str().context("an id")?;
    let mut command = env.asset_worker_command(&["jobs", "retry", id])?;
    command.env("ASSET_WORKER_PAUSE_AT", "before_retry_command").kill_on_drop(true);
    let mut retry = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut log = BufReader::new(retry.stderr.take().context("a pipe")?).lines();
    while let Some(line) = log.next_line().await? {
        if line.contains("paused at a failpoint") {
            break;
        }
    }
    retry.kill().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    let retried = events.wait_for_data("completed").await?;
    assert_eq!((&retried["retry_of"], &retried["succeeded"]), (&data["job_id"], &json!(1)));
    Ok(())
}

/// It is known before its command arrives.
#[tokio::test]
async fn submitted_retry_can_be_cancelled() -> Result<()> {
    let env = new_env(Database::Postgres).await?;
    let data = run_job_with_failures(&env).await?;
    let requests = env.sandbox.ledger().requests;
    let retry = jobs(&env, &["retry", data["job_id"].as_str().context("an id")?]).await?.expect("an image failed");
    let id = retry[0]["job_id"].as_str().context("an id")?;
    assert_eq!(jobs(&env, &["cancel", id]).await?.expect("it is known")["cancelled"], 1);
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let _worker = env.start_ready_worker().await?;
    let ended = events.wait_for_data("failed").await?;
    assert_eq!((&ended["job_id"], &ended["error"]["code"]), (&retry[0]["job_id"], &json!("cancelled")));
    assert_eq!((&ended["retry_of"], &ended["failures"][0]["original_index"]), (&data["job_id"], &json!(2)));
    assert_eq!(env.sandbox.ledger().requests, requests);
    Ok(())
}
