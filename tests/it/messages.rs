//! Handling of messages: none is lost, none is run twice, none stops the worker.

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait::wait_until;
use integration_tests::{Database, TestEnv, WAIT_TIMEOUT, command};
use lapin::BasicProperties;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use uuid::Uuid;

#[tokio::test]
async fn malformed_message_is_dead_lettered_with_its_reason() -> Result<()> {
    let env = TestEnv::new().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    for (body, reason) in [
        (&b"\xff\xfenot JSON"[..], "invalid_request: body: not JSON in UTF-8"),
        (b"[1, 2]", "invalid_request: body: "),
        (b"", "invalid_request: body: not JSON in UTF-8"),
        (br#"{"job_id": 7}"#, "invalid_request: job_id: 7 is not allowed; a UUID"),
    ] {
        producer.publish_bytes(body, None).await?;
        let dead = producer.take_dead_letter().await?;
        assert_eq!(dead.body, body);
        let found = dead.header("x-rejected-reason").unwrap_or_default();
        assert!(found.starts_with(reason), "{found}");
    }
    let mut bad = command(42, &["A fox"], &json!({"steps": 5, "sparkle": true}));
    producer.publish(&bad).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "invalid_request");
    assert_eq!((&data["job_id"], &data["project_id"]), (&bad["job_id"], &json!(42)));
    let message = data["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("config.steps: 5 is not allowed; a whole number from 10 to 50"), "{message}");
    assert!(message.contains("config.sparkle: unknown key"), "{message}");
    let dead = producer.take_dead_letter().await?;
    assert_eq!(dead.json(), bad);
    let jobs = env.query_rows("SELECT status, error_code FROM jobs").await?;
    assert_eq!(jobs, [json!({"status": "failed", "error_code": "invalid_request"})]);

    // The corrected command with the same id is another command: the job of that id has already failed.
    bad["config"] = json!({});
    producer.publish(&bad).await?;
    assert_eq!(producer.take_dead_letter().await?.header("x-rejected-reason").as_deref(), Some("job_id_conflict"));
    producer.publish(&command(42, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;
    assert!(worker.is_running());
    Ok(())
}

#[tokio::test]
async fn redelivered_job_is_not_paid_twice_and_repeats_its_event() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let command = command(1, &["A fox", "A bear"], &json!({"seed": 7, "steps": 30}));
    producer.publish(&command).await?;
    let first = events.wait_for("completed").await?.pop().expect("at least one event");
    // The same command, with its keys in another order and other white space.
    let reordered = format!(
        "{{ \"config\": {{\"steps\": 30, \"seed\": 7}},\n \"image_descriptions\": [\"A fox\", \" A bear \"], \"project_id\": 1, \"job_id\": {} }}",
        command["job_id"]
    );
    producer.publish_bytes(reordered.as_bytes(), None).await?;
    let again = events.next().await?;
    assert_eq!(String::from_utf8_lossy(&again.body), String::from_utf8_lossy(&first.body));
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn conflicting_command_is_dead_lettered_without_an_event() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let first = command(1, &["A fox"], &json!({}));
    producer.publish(&first).await?;
    events.wait_for("completed").await?;
    let mut other = first.clone();
    other["image_descriptions"] = json!(["A bear"]);
    producer.publish(&other).await?;
    let dead = producer.take_dead_letter().await?;
    assert_eq!(dead.header("x-rejected-reason").as_deref(), Some("job_id_conflict"));
    assert_eq!(dead.json(), other);
    // The next event belongs to the next job: the conflict caused none.
    let next = command(1, &["An owl"], &json!({}));
    producer.publish(&next).await?;
    assert_eq!(events.next().await?.json()["data"]["job_id"], next["job_id"]);
    assert_eq!(env.sandbox.ledger().prompt_counts("A bear").requests, 0);
    Ok(())
}

#[tokio::test]
async fn unroutable_terminal_event_is_stored_and_command_is_acknowledged() -> Result<()> {
    let env = TestEnv::new().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let command = command(1, &["A fox"], &json!({}));
    producer.publish(&command).await?;
    worker.wait_for_log("no queue is bound for the job's terminal event").await?;
    let settled = async || {
        let rows = env.query_rows("SELECT status, published_at, terminal_event FROM jobs").await.ok()?;
        rows.into_iter().find(|row| row["status"] == "completed")
    };
    let row = wait_until("the completed job", WAIT_TIMEOUT, settled).await?;
    assert_eq!(row["published_at"], Value::Null);
    // The command is repeated after a queue was bound: the stored event is published.
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command).await?;
    let event = events.next().await?;
    assert_eq!(Some(String::from_utf8_lossy(&event.body).as_ref()), row["terminal_event"].as_str());
    assert_eq!(env.sandbox.ledger().requests, 1);
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    assert_eq!(producer.ready_count("assets.generate").await?, 0, "both deliveries were acknowledged");
    Ok(())
}

#[tokio::test]
async fn command_delivered_twice_concurrently_is_run_once() -> Result<()> {
    let env = TestEnv::new().await?;
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let command = command(1, &["A fox [fault:slow=400]", "A bear [fault:slow=400]"], &json!({}));
    producer.publish(&command).await?;
    producer.publish(&command).await?;
    let first = events.wait_for("completed").await?.pop().expect("at least one event");
    let second = events.wait_for("completed").await?.pop().expect("at least one event");
    assert_eq!(String::from_utf8_lossy(&first.body), String::from_utf8_lossy(&second.body));
    assert_eq!(env.sandbox.ledger().requests, 2);
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    assert_eq!(producer.ready_count("assets.generate").await?, 0);
    Ok(())
}

#[tokio::test]
async fn dead_letter_keeps_properties_except_expiration_and_user_id() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut headers = FieldTable::default();
    headers.insert("x-pipeline".into(), lapin::types::AMQPValue::LongString("seven".into()));
    let properties = BasicProperties::default()
        .with_expiration("60000".into())
        .with_user_id("guest".into())
        .with_correlation_id("c-1".into())
        .with_priority(7)
        .with_headers(headers);
    producer.publish_with_properties(b"{}", properties).await?;
    let dead = producer.take_dead_letter().await?;
    assert_eq!(dead.header("x-pipeline").as_deref(), Some("seven"));
    assert_eq!(dead.properties().correlation_id().as_ref().map(ToString::to_string).as_deref(), Some("c-1"));
    assert_eq!(dead.content_type().as_deref(), Some("application/json"));
    assert_eq!(*dead.properties().priority(), Some(7));
    assert!(dead.is_persistent());
    assert!(dead.properties().expiration().is_none() && dead.properties().user_id().is_none());
    Ok(())
}

#[tokio::test]
async fn command_key_with_nul_character_is_refused() -> Result<()> {
    let env = TestEnv::with_database(Database::Postgres).await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let body = format!(r#"{{"job_id": "{}", "project_id": 1, "a\u0000b": 1}}"#, Uuid::now_v7());
    producer.publish_bytes(body.as_bytes(), None).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!(data["error"]["code"], "invalid_request");
    assert_eq!(producer.take_dead_letter().await?.body, body.as_bytes());
    Ok(())
}

#[tokio::test]
async fn path_traversal_in_texts_has_no_effect() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions =
        ["../../../../escaped", "..\\..\\escaped", "/escaped", "file:///escaped", "%2e%2e%2fescaped", "projects/9/x"];
    let config = json!({"style_modifiers": ["../escaped"], "negative_prompt": "/escaped\u{202e}gnp."});
    producer.publish(&command(1, &descriptions, &config)).await?;
    let data = events.wait_for_data("completed").await?;
    let paths: Vec<_> =
        data["assets"].as_array().expect("assets is an array").iter().map(|asset| asset["file_path"].clone()).collect();
    let expected: Vec<_> = (1..=6).map(|index| json!(format!("projects/1/assets/image_{index:03}.png"))).collect();
    assert_eq!(paths, expected);
    // No file or folder was created beside the projects' folder and the database.
    let names = |folder: &std::path::Path| -> Result<Vec<_>> {
        Ok(std::fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<std::io::Result<_>>()?)
    };
    assert_eq!(names(&env.stored_path(""))?, ["projects"]);
    assert_eq!(names(&env.stored_path("projects"))?, ["1"]);
    let escaped = env.folder().ancestors().any(|folder| folder.join("escaped").exists());
    assert!(!escaped);
    Ok(())
}

#[tokio::test]
async fn nacked_terminal_event_is_published_again_later() -> Result<()> {
    let env = TestEnv::new().await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    // A queue with room for one message, which is already full.
    producer.bind_full_queue("full", "assets.generation.completed").await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    worker.wait_for_log("nacked by the broker").await?;
    assert_eq!(env.query_rows("SELECT status FROM jobs WHERE published_at IS NULL").await?.len(), 1);
    assert_eq!(producer.drain_queue("full").await?[0].body, b"in the way");
    let published = async || producer.drain_queue("full").await.ok()?.pop();
    let event = wait_until("the completed event", WAIT_TIMEOUT, published).await?;
    assert_eq!(event.event_type(), "assets.generation.completed");
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}
