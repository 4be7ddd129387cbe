//! Files in a bucket that several workers share.

use anyhow::Result;
use dev_services::process::Signal;
use image::GenericImageView;
use integration_tests::{Database, World, bucket, command};
use serde_json::{Value, json};

/// The objects of a terminal event are whole pictures of the right size, and their URIs name them.
fn assert_objects(bucket: &integration_tests::Bucket, data: &Value) -> Result<()> {
    for asset in data["assets"].as_array().expect("a list") {
        let path = asset["file_path"].as_str().expect("a path");
        let key = format!("renders/final/{path}");
        assert_eq!(asset["uri"], format!("s3://{}/{key}", bucket::NAME));
        let bytes = std::fs::read(bucket.file(&key))?;
        assert_eq!(asset["size_bytes"], bytes.len());
        assert_eq!(image::load_from_memory(&bytes)?.dimensions(), (1920, 1080));
    }
    Ok(())
}

#[tokio::test]
async fn files_go_to_a_bucket_and_a_cached_one_is_copied_there() -> Result<()> {
    let mut world = World::new().await?;
    let bucket = world.bucket().await?;
    let first = world.generate(&command(42, &["A fox", "A bear"], &json!({}))).await?.data_of("completed")?;
    assert_objects(&bucket, &first)?;
    assert_eq!(first["assets"][0]["file_path"], "projects/42/assets/image_001.png");
    let again = world.generate(&command(42, &["A fox"], &json!({"cache": "prefer"}))).await?.data_of("completed")?;
    assert_objects(&bucket, &again)?;
    assert_eq!((&again["from_cache"], &again["assets"][0]["sha256"]), (&json!(1), &first["assets"][0]["sha256"]));
    assert_eq!(world.sandbox.ledger().requests, 2);
    // Nothing but the pictures is left there.
    assert_eq!(std::fs::read_dir(bucket.file("renders/final/projects/42/assets"))?.count(), 3);
    Ok(())
}

#[tokio::test]
async fn a_file_that_a_killed_worker_left_in_the_bucket_is_adopted_by_another() -> Result<()> {
    let mut world = World::with(Database::Postgres).await?;
    let bucket = world.bucket().await?;
    world.set("ASSET_WORKER_PAUSE_AT", "before_row");
    let mut worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(7, &["A fox"], &json!({}))).await?;
    worker.has_logged("\"point\":\"before the row\"").await?;
    worker.signal(Signal::KILL);
    worker.ended().await?;
    world.set("ASSET_WORKER_PAUSE_AT", "");
    let _next = world.worker().await?;
    let data = events.data_of("completed").await?;
    assert_objects(&bucket, &data)?;
    assert_eq!(world.sandbox.ledger().requests, 1);
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_bucket_is_said_before_anything_is_paid_for_and_no_secret_with_it() -> Result<()> {
    let mut world = World::new().await?;
    let _bucket = world.bucket().await?;
    world.set("AWS_SECRET_ACCESS_KEY", "another-hunter2");
    world.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    let done = world.generate(&command(1, &["A fox"], &json!({}))).await?;
    assert!(!done.log.contains("hunter2"), "{}", done.log);
    let data = done.data_of("failed")?;
    assert_eq!(
        (&data["error"]["code"], &data["failures"][0]["code"]),
        (&json!("attempts_exhausted"), &json!("storage"))
    );
    assert_eq!(world.sandbox.ledger().requests, 0);
    let doctor = world.run(&["doctor"]).await?;
    let said = String::from_utf8_lossy(&[doctor.stdout, doctor.stderr].concat()).into_owned();
    assert_eq!(doctor.status.code(), Some(69), "{said}");
    assert!(said.contains("mend ASSET_STORAGE_URL") && !said.contains("hunter2"), "{said}");
    Ok(())
}
