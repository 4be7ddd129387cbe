//! The storage fails after images were paid for: they are kept until it works again.

use std::path::PathBuf;

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait::wait_until;
use integration_tests::{TestEnv, WAIT_TIMEOUT, Worker, assert_files, command};
use serde_json::json;

/// A file in the place of the folder of a project, so that nothing can be stored in it.
struct Outage {
    folder: PathBuf,
}

impl Outage {
    fn begin(env: &TestEnv, project: u32) -> Result<Self> {
        let folder = env.stored_path(&format!("projects/{project}"));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::write(&folder, "")?;
        Ok(Self { folder })
    }

    fn end(self) -> Result<()> {
        Ok(std::fs::remove_file(self.folder)?)
    }
}

#[tokio::test]
async fn worker_waits_for_the_storage_at_start() -> Result<()> {
    let env = TestEnv::new().await?;
    let folder = env.folder().join("data/assets");
    std::fs::create_dir_all(env.folder().join("data"))?;
    std::fs::write(&folder, "")?;
    let mut worker = env.start_worker()?;
    worker.wait_for_log("cannot reach the storage; retrying").await?;
    assert_eq!(worker.probe("livez").await?.0, 200);
    let (status, body) = worker.probe("readyz").await?;
    assert_eq!((status, &body["storage"]), (503, &json!("not opened yet")));
    let available = async |worker: &Worker| {
        let metrics = worker.metrics().await?;
        anyhow::Ok(metrics.value("asset_worker_dependency_available", &[("dependency", "storage")]))
    };
    assert_eq!(available(&worker).await?, Some(0.0));
    std::fs::remove_file(&folder)?;
    worker.wait_until_ready().await?;
    assert_eq!(available(&worker).await?, Some(1.0));
    Ok(())
}

/// A stopped worker has made enough images; the missing one is not given up in an attempt during an outage.
#[tokio::test]
async fn attempt_during_an_outage_gives_up_no_image() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_MAX_ATTEMPTS", "100");
    let mut worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let config = json!({"min_success_rate": 0.6, "max_concurrent": 1});
    producer.publish(&command(1, &["A fox", "A bear [fault:slow=1000]", "An owl"], &config)).await?;
    let second_requested = async || (env.sandbox.ledger().requests == 2).then_some(());
    wait_until("the second request", WAIT_TIMEOUT, second_requested).await?;
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    assert_eq!(env.query_rows("SELECT id FROM assets WHERE status = 'completed'").await?.len(), 2);
    let outage = Outage::begin(&env, 1)?;
    let worker = env.start_ready_worker().await?;
    worker.wait_for_log("storage unavailable; no image is started in this attempt").await?;
    outage.end()?;
    assert_eq!(events.wait_for_data("completed").await?["succeeded"], 3);
    Ok(())
}

#[tokio::test]
async fn paid_images_are_stored_after_an_outage_of_the_storage() -> Result<()> {
    let env = TestEnv::new().await?;
    env.sandbox.set_latency(std::time::Duration::from_millis(500));
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear", "An owl"], &json!({}))).await?;
    // The check before the first request has passed.
    env.wait_for_requests(1).await?;
    let outage = Outage::begin(&env, 1)?;
    // Far more than the attempts of a few seconds.
    let retried = async || (worker.log().matches("storage unavailable; retrying").count() >= 15).then_some(());
    wait_until("retries", WAIT_TIMEOUT, retried).await?;
    outage.end()?;
    let data = events.wait_for_data("completed").await?;
    assert_files(&env, &data, &[1, 2, 3])?;
    let ledger = env.sandbox.ledger();
    assert_eq!((ledger.requests, ledger.charged), (3, 3), "no image is paid for again");
    Ok(())
}

/// 72 images of more than 1 MB exceed the 64 MiB that may wait for the storage.
#[tokio::test]
async fn nothing_is_paid_for_while_many_images_wait_for_the_storage() -> Result<()> {
    const JOBS: u32 = 12;
    let mut env = TestEnv::new().await?;
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", JOBS.to_string());
    env.set("STABILITY_MAX_CONCURRENT", "6");
    env.set("WORKER_LEASE", "1m");
    // Folders in the place of the files: other files can be stored beside them.
    let obstacle = |job, image| env.stored_path(&format!("projects/{job}/assets/image_{image:03}.png"));
    for (job, image) in (1..=JOBS).flat_map(|job| (1..=6).map(move |image| (job, image))) {
        std::fs::create_dir_all(obstacle(job, image))?;
    }
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    for job in 1..=JOBS {
        let descriptions = [1, 2, 3, 4, 5, 6].map(|image| format!("Harbour {job}-{image} at dusk"));
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        producer.publish(&command(job.into(), &descriptions, &json!({"max_concurrent": 6, "cache": "never"}))).await?;
    }
    worker.wait_for_log("images wait for the storage; nothing is paid for until some are stored").await?;
    let paid = env.query_rows("SELECT requests FROM spending").await?[0]["requests"].as_u64();
    assert!(paid < Some((JOBS * 6).into()), "{paid:?}");
    for (job, image) in (1..=JOBS).flat_map(|job| (1..=6).map(move |image| (job, image))) {
        std::fs::remove_dir(obstacle(job, image))?;
    }
    for _ in 0..JOBS {
        assert_eq!(events.wait_for_data("completed").await?["succeeded"], 6);
    }
    assert_eq!(env.sandbox.ledger().requests, JOBS * 6, "no image is paid for again");
    Ok(())
}
