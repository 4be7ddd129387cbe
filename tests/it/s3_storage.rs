//! Files in an S3 bucket that several workers share.

use anyhow::Result;
use dev_services::process::Signal;
use image::GenericImageView;
use integration_tests::{Database, TestEnv, bucket, command};
use serde_json::{Value, json};

/// Asserts that the objects of a terminal event are complete 1920x1080 images and that their URIs name them.
fn assert_objects(bucket: &integration_tests::Bucket, data: &Value) -> Result<()> {
    for asset in data["assets"].as_array().expect("assets is an array") {
        let path = asset["file_path"].as_str().expect("file_path is a string");
        let key = format!("renders/final/{path}");
        assert_eq!(asset["uri"], format!("s3://{}/{key}", bucket::NAME));
        let bytes = std::fs::read(bucket.object_path(&key))?;
        assert_eq!(asset["size_bytes"], bytes.len());
        assert_eq!(image::load_from_memory(&bytes)?.dimensions(), (1920, 1080));
    }
    Ok(())
}

#[tokio::test]
async fn files_are_stored_and_cached_files_copied_in_bucket() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let bucket = env.start_bucket().await?;
    let first = env.generate(&command(42, &["A fox", "A bear"], &json!({}))).await?.expect_data("completed")?;
    assert_objects(&bucket, &first)?;
    assert_eq!(first["assets"][0]["file_path"], "projects/42/assets/image_001.png");
    let again = env.generate(&command(42, &["A fox"], &json!({"cache": "prefer"}))).await?.expect_data("completed")?;
    assert_objects(&bucket, &again)?;
    assert_eq!((&again["from_cache"], &again["assets"][0]["sha256"]), (&json!(1), &first["assets"][0]["sha256"]));
    assert_eq!(env.sandbox.ledger().requests, 2);
    // Only the images are left there.
    assert_eq!(std::fs::read_dir(bucket.object_path("renders/final/projects/42/assets"))?.count(), 3);
    Ok(())
}

#[tokio::test]
async fn file_left_in_bucket_by_killed_worker_is_adopted() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    let bucket = env.start_bucket().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "before_row");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(7, &["A fox"], &json!({}))).await?;
    worker.wait_for_log("\"point\":\"before_row\"").await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let _next = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_objects(&bucket, &data)?;
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}

#[tokio::test]
async fn bucket_error_is_reported_before_spending_and_without_secrets() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _bucket = env.start_bucket().await?;
    env.set("AWS_SECRET_ACCESS_KEY", "another-hunter2");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let done = env.generate(&command(1, &["A fox"], &json!({}))).await?;
    assert!(!done.log.contains("hunter2"), "{}", done.log);
    let data = done.expect_data("failed")?;
    assert_eq!(
        (&data["error"]["code"], &data["failures"][0]["code"]),
        (&json!("attempts_exhausted"), &json!("storage"))
    );
    assert_eq!(env.sandbox.ledger().requests, 0);
    let doctor = env.run(&["doctor"]).await?;
    let output = String::from_utf8_lossy(&[doctor.stdout, doctor.stderr].concat()).into_owned();
    assert_eq!(doctor.status.code(), Some(69), "{output}");
    assert!(output.contains("correct ASSET_STORAGE_URL") && !output.contains("hunter2"), "{output}");
    Ok(())
}

#[tokio::test]
async fn unusable_bucket_settings_end_the_start_with_their_cause() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("ASSET_STORAGE_URL", "s3://renders/final");
    env.set("AWS_ACCESS_KEY_ID", "AKIA");
    let output = env.run(&["run"]).await?;
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{printed}");
    assert!(printed.contains("ASSET_STORAGE_URL: ") && printed.contains("Missing SecretAccessKey"), "{printed}");
    Ok(())
}
