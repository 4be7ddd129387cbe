//! The main path of a job: from a command to images, rows and events.

use std::time::Duration;

use anyhow::Result;
use dev_services::process::Signal;
use integration_tests::{Database, TestEnv, assert_files, command, failure_codes, metadata};
use serde_json::json;

const TRACE_PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn command_produces_images_rows_and_events_on_sqlite() -> Result<()> {
    command_produces_images_rows_and_events(Database::Sqlite).await
}

#[tokio::test]
async fn command_produces_images_rows_and_events_on_postgres() -> Result<()> {
    command_produces_images_rows_and_events(Database::Postgres).await
}

async fn command_produces_images_rows_and_events(database: Database) -> Result<()> {
    let env = TestEnv::with_database(database).await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["A serene mountain landscape", "A gory battle", "A quiet beach"];
    let command = command(42, &descriptions, &json!({"min_success_rate": 0.6, "style_modifiers": ["4k quality"]}));
    producer.publish_bytes(command.to_string().as_bytes(), Some(TRACE_PARENT)).await?;
    let events = events.wait_for("completed").await?;

    let kinds: Vec<_> = events.iter().map(|event| event.event_type().replace("assets.generation.", "")).collect();
    assert_eq!(kinds, ["started", "progress", "progress", "progress", "completed"]);
    for event in &events {
        let envelope = event.json();
        assert_eq!(event.content_type().as_deref(), Some("application/cloudevents+json"));
        assert!(event.is_persistent());
        assert_eq!(event.routing_key, event.event_type());
        assert_eq!(event.header("traceparent").as_deref(), Some(TRACE_PARENT));
        assert_eq!(envelope["traceparent"], TRACE_PARENT);
        assert_eq!(envelope["specversion"], "1.0");
        assert_eq!(envelope["source"], "/asset-worker");
        assert_eq!(envelope["subject"], format!("projects/42/jobs/{}", command["job_id"].as_str().unwrap_or_default()));
    }
    let data = events[4].json()["data"].clone();
    assert_eq!([&data["total"], &data["succeeded"], &data["failed"]], [&json!(3), &json!(2), &json!(1)]);
    assert_eq!(data["cost_usd"], json!(0.04));
    assert_eq!(data["failures"][0]["code"], "content_policy");
    assert_eq!(data["failures"][0]["index"], 2);
    assert_files(&env, &data, &[1, 3])?;
    assert_eq!(data["assets"][0]["prompt"], "A serene mountain landscape, 4k quality");

    let jobs = env.query_rows("SELECT project_id, status, total, error_code FROM jobs").await?;
    assert_eq!(jobs, [json!({"project_id": 42, "status": "completed", "total": 3, "error_code": null})]);
    let rows = env
        .query_rows(r#"SELECT "index", type, status, file_path, error_code, metadata FROM assets ORDER BY "index""#)
        .await?;
    let shown: Vec<_> =
        rows.iter().map(|row| ["index", "status", "error_code"].map(|column| row[column].clone())).collect();
    assert_eq!(
        shown,
        [
            [json!(1), json!("completed"), json!(null)],
            [json!(2), json!("failed"), json!("content_policy")],
            [json!(3), json!("completed"), json!(null)],
        ]
    );
    let metadata = metadata(&rows[0]);
    assert_eq!(rows[0]["file_path"], "projects/42/assets/image_001.png");
    assert_eq!(metadata["description"], "A serene mountain landscape");
    assert_eq!(metadata["prompt"], "A serene mountain landscape, 4k quality");
    assert_eq!(metadata["index"], 1);
    assert_eq!(metadata["origin"], "generated");
    assert_eq!(metadata["seed"], data["assets"][0]["seed"]);
    assert_eq!(env.sandbox.ledger().requests, 3);
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    assert_eq!(producer.ready_count("assets.generate").await?, 0, "the command was acknowledged");
    Ok(())
}

/// Test 4. It checks the number of requests in flight; durations are measured by benchmarks.
#[tokio::test]
async fn test_4_ten_images_are_generated_four_at_once() -> Result<()> {
    let env = TestEnv::new().await?;
    env.sandbox.set_latency(Duration::from_millis(500));
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = [
        "A mountain landscape",
        "A busy city street",
        "A peaceful beach",
        "A forest path",
        "A desert sunset",
        "A snowy village",
        "A tropical island",
        "A modern building",
        "A vintage car",
        "A flower garden",
    ];
    let config =
        json!({"style_modifiers": ["cinematic lighting", "4k quality"], "negative_prompt": "blurry, low quality"});
    producer.publish(&command(1, &descriptions, &config)).await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["succeeded"], 10);
    assert_files(&env, &data, &(1..=10).collect::<Vec<_>>())?;
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger.max_in_flight, 4);
    assert_eq!((ledger.requests, ledger.charged), (10, 10));
    for (description, prompt) in descriptions.iter().zip(data["assets"].as_array().expect("assets is an array")) {
        assert_eq!(prompt["prompt"], format!("{description}, cinematic lighting, 4k quality"));
        assert_eq!(ledger.prompt_counts(description).requests, 1);
    }
    Ok(())
}

/// Test 7: a success rate of exactly 80% is enough.
#[tokio::test]
async fn test_7_two_failures_of_ten_are_tolerated() -> Result<()> {
    let env = TestEnv::new().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions: Vec<_> = (0..10).map(|index| format!("Image number {index}")).collect();
    for index in [2, 7] {
        env.inject_fault("status=500", Some(&format!("number {index}")))?;
    }
    let descriptions: Vec<_> = descriptions.iter().map(String::as_str).collect();
    producer.publish(&command(1, &descriptions, &json!({}))).await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!(data["success_rate"], json!(0.8));
    assert_files(&env, &data, &[1, 2, 4, 5, 6, 7, 9, 10])?;
    let failures: Vec<_> = data["failures"]
        .as_array()
        .expect("failures is an array")
        .iter()
        .map(|failure| (failure["index"].clone(), failure["code"].clone(), failure["attempts"].clone()))
        .collect();
    // The first request and three retries, one for each configured delay.
    assert_eq!(
        failures,
        [(json!(3), json!("provider_unavailable"), json!(4)), (json!(8), json!("provider_unavailable"), json!(4)),]
    );
    worker.wait_for_log("Image number 2").await?;
    worker.wait_for_log("Image number 7").await?;
    assert!(worker.is_running());
    Ok(())
}

/// Other side of test 7: below 80% the job fails; finished images are kept and listed in the event.
#[tokio::test]
async fn test_7_three_failures_of_ten_fail_job_early() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["A calm lake", "Gore one", "Gore two", "Gore three", "A", "B", "C", "D", "E", "F"];
    producer.publish(&command(1, &descriptions, &json!({"max_concurrent": 1}))).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "success_rate_too_low");
    assert_files(&env, &data, &[1])?;
    assert_eq!(failure_codes(&data), [vec!["content_policy"; 3], vec!["not_attempted"; 6]].concat());
    assert_eq!(
        env.sandbox.ledger().charged,
        1,
        "after three permanent failures of ten the success rate is out of reach"
    );
    Ok(())
}

#[tokio::test]
async fn stable_image_engine_is_selected_by_name() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let config = json!({"engine": "core", "style_preset": "cinematic", "seed": 7});
    producer.publish(&command(1, &["A fox", "A bear"], &config)).await?;
    let data = events.wait_for_data("completed").await?;
    assert_files(&env, &data, &[1, 2])?;
    assert_eq!(data["assets"][0]["seed"], 7);
    // A parameter that the engine does not support fails the image without a request; the message names the parameter.
    producer.publish(&command(1, &["An owl"], &json!({"engine": "ultra", "steps": 30}))).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["failures"][0]["code"], "rejected_request");
    assert_eq!(data["failures"][0]["message"], "steps: 30 is not allowed; not supported by ultra");
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn later_job_of_same_project_overwrites_no_files() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(7, &["A fox"], &json!({}))).await?;
    let first = events.wait_for_data("completed").await?;
    let before = std::fs::read(env.stored_path("projects/7/assets/image_001.png"))?;
    let second_command = command(7, &["A bear"], &json!({}));
    producer.publish(&second_command).await?;
    let second = events.wait_for_data("completed").await?;
    assert_eq!(first["assets"][0]["file_path"], "projects/7/assets/image_001.png");
    let job_id = second_command["job_id"].as_str().expect("job_id is a string");
    assert_eq!(second["assets"][0]["file_path"], format!("projects/7/assets/image_001-{job_id}.png"));
    assert_eq!(std::fs::read(env.stored_path("projects/7/assets/image_001.png"))?, before);
    assert_files(&env, &second, &[1])
}

#[tokio::test]
async fn foreign_file_at_target_path_is_not_overwritten() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let stranger = env.stored_path("projects/7/assets/image_001.png");
    std::fs::create_dir_all(env.stored_path("projects/7/assets"))?;
    std::fs::write(&stranger, "a stranger's")?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(7, &["A fox"], &json!({}))).await?;
    let data = events.wait_for_data("completed").await?;
    assert_ne!(data["assets"][0]["file_path"], "projects/7/assets/image_001.png");
    assert_eq!(std::fs::read(&stranger)?, b"a stranger's");
    assert_files(&env, &data, &[1])
}

#[tokio::test]
async fn only_images_with_retryable_failures_are_retried() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    // Four requests are one attempt at the image, so it succeeds in the job's second attempt.
    let descriptions = ["A steady river", "A shy fox [fault:status=503 x4]"];
    producer.publish(&command(1, &descriptions, &json!({"min_success_rate": 1.0}))).await?;
    let data = events.wait_for_data("completed").await?;
    assert_files(&env, &data, &[1, 2])?;
    let ledger = env.sandbox.ledger();
    assert_eq!(ledger.prompt_counts("A steady river").requests, 1);
    assert_eq!((ledger.prompt_counts("A shy fox").requests, ledger.prompt_counts("A shy fox").charged), (5, 1));
    Ok(())
}

#[tokio::test]
async fn undecodable_image_is_invalid_and_never_stored() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["One [fault:corrupt]", "Two [fault:bomb]", "Three [fault:wrong-size]"];
    producer.publish(&command(1, &descriptions, &json!({"min_success_rate": 0.3}))).await?;
    let data = events.wait_for_data("completed").await?;
    // An image of another size is scaled and cropped like any other.
    assert_files(&env, &data, &[3])?;
    assert_eq!(failure_codes(&data), ["invalid_image", "invalid_image"]);
    let files = std::fs::read_dir(env.stored_path("projects/1/assets"))?.count();
    assert_eq!(files, 1);
    Ok(())
}

#[tokio::test]
async fn unwritable_storage_exhausts_job_attempts_without_requests() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    // A file where a folder is needed makes storage fail.
    std::fs::write(env.stored_path("projects"), "in the way")?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "attempts_exhausted");
    assert_eq!(data["failures"][0]["code"], "storage");
    assert_eq!(env.sandbox.ledger().requests, 0, "no image is paid for that could not be stored");
    Ok(())
}

#[tokio::test]
async fn job_over_max_cost_is_refused_before_any_request() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear", "An owl"], &json!({"max_cost_usd": 0.05}))).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "budget_exceeded");
    assert_eq!(env.sandbox.ledger().requests, 0);
    Ok(())
}

#[tokio::test]
async fn rejected_api_key_never_leaks() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("STABILITY_API_KEY", "sk-hunter2-is-wrong");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let worker = env.start_worker()?;
    worker.wait_for_log("consuming commands").await?;
    let (status, probe) = worker.probe("readyz").await?;
    assert_eq!((status, &probe["status"]), (200, &json!("ok")), "a rollout must be able to repair the key");
    assert!(probe["api_key"].as_str().is_some_and(|why| why.contains("401") || why.contains("key")), "{probe}");
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear"], &json!({"max_concurrent": 1}))).await?;
    let seen = events.wait_for("failed").await?;
    let data = seen[seen.len() - 1].json()["data"].clone();
    assert_eq!(data["error"]["code"], "unauthorized");
    assert_eq!(failure_codes(&data), ["not_attempted", "not_attempted"]);
    assert_eq!(env.sandbox.ledger().requests, 1);
    let doctor = env.run(&["doctor"]).await?;
    let doctor = String::from_utf8_lossy(&[doctor.stdout, doctor.stderr].concat()).into_owned();
    let (_, probe) = worker.probe("readyz").await?;
    assert!(probe["gate_closed"][0].as_str().is_some_and(|reason| reason.contains("refuses the key")), "{probe}");
    let keys = format!("{:?}", env.query_rows("SELECT * FROM account_keys").await?);
    let bodies: String = seen.iter().map(|event| String::from_utf8_lossy(&event.body).into_owned()).collect();
    let rows = format!("{:?}", env.query_rows("SELECT error_message, command FROM jobs").await?);
    for text in [worker.log(), bodies, rows, doctor, probe.to_string(), keys] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn concurrent_jobs_of_one_project_overwrite_no_files() -> Result<()> {
    let env = TestEnv::with_database(Database::Postgres).await?;
    let _workers = (env.start_ready_worker().await?, env.start_ready_worker().await?);
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let jobs = [command(7, &["A fox", "A bear"], &json!({})), command(7, &["An owl", "A cat"], &json!({}))];
    for job in &jobs {
        producer.publish(job).await?;
    }
    let mut paths = Vec::new();
    for _ in &jobs {
        let data = events.wait_for_data("completed").await?;
        assert_files(&env, &data, &[1, 2])?;
        paths.extend(
            data["assets"].as_array().expect("assets is an array").iter().map(|asset| asset["file_path"].to_string()),
        );
    }
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 4);
    Ok(())
}
