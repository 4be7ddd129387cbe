//! How long a worker takes from its start until it has taken its first command.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;

use super::photo_env;
use crate::measurement_result::publish_jobs;

const STARTS: usize = 7;

/// Starts workers one after another; a command waits for each of them, on a database that is migrated.
pub(super) async fn measure(photos: &[Bytes]) -> Result<Vec<Duration>> {
    let env = photo_env(photos).await?;
    // The first worker migrates the database and declares the queues.
    drop(env.start_ready_worker().await?);
    let broker = env.connect_broker().await?;
    let mut events = broker.subscribe_to_events().await?;
    let mut durations = Vec::new();
    for _ in 0..STARTS {
        publish_jobs(&env, 1, 1).await?;
        let started = Instant::now();
        let worker = env.start_worker()?;
        events.wait_for("started").await?;
        durations.push(started.elapsed());
        events.wait_for("completed").await?;
        drop(worker);
    }
    Ok(durations)
}
