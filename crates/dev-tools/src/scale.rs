//! Measurements of several workers: use of the permitted rate, requests during a rate-limit pause, and throughput of
//! four workers compared with one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dev_services::wait::wait_until;
use integration_tests::{Database, TestEnv, Worker};
use stability_sandbox::faults::FaultSpec;
use stability_sandbox::{Sandbox, Settings};

use crate::api_load::{measure_calls, measure_streams};
use crate::measurement_result::{MEASUREMENT_TIMEOUT, publish_jobs, wait_for_jobs};
use crate::page_load::measure_pages;
use crate::purge_load::measure_purge;
use crate::telemetry_overhead;

pub use crate::measurement_result::MeasurementResult;

/// Requests that the account permits in a minute.
const RATE_LIMIT_PER_MINUTE: u32 = 300;
/// Jobs that are published at once.
const JOBS: usize = 40;
const IMAGES_PER_JOB: usize = 20;
/// Duration of the rate-limit pause.
const LOCKOUT: Duration = Duration::from_secs(15);
/// Requests that were in flight when the rate-limit pause began arrive within this time.
const IN_FLIGHT_WINDOW: Duration = Duration::from_millis(500);

/// One measurement.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Measurement {
    /// Four workers, forty jobs, and a sandbox that rejects all requests for a minute if the account's limit is
    /// exceeded.
    Quota,
    /// The same with a rate-limit pause in the middle.
    Lockout,
    /// One worker compared with four, with an API that takes two seconds and without a quota.
    Workers,
    /// CPU time per image of one worker, with and without telemetry.
    Telemetry,
    /// Images a second of one worker, with a collector that never answers and without telemetry.
    UnresponsiveCollector,
    /// Images of one worker while a purge removes 100,000 jobs, and without it.
    Purge,
    /// The median of each call of the HTTP API but files, with 100,000 jobs in the database.
    Api,
    /// The median of each page, with 100,000 jobs in the database.
    Pages,
    /// Images of one worker with twenty event streams of the HTTP API, and without them.
    Streams,
}

/// Runs a measurement with the services that `dev-services run` provides.
///
/// # Errors
///
/// If the measurement cannot be completed.
pub async fn measure(measurement: Measurement) -> Result<MeasurementResult> {
    match measurement {
        Measurement::Quota => measure_quota(None).await,
        Measurement::Lockout => measure_quota(Some(LOCKOUT)).await,
        Measurement::Workers => measure_scaling().await,
        Measurement::Telemetry => telemetry_overhead::measure_cpu_overhead().await,
        Measurement::Purge => measure_purge().await,
        Measurement::Api => measure_calls().await,
        Measurement::Pages => measure_pages().await,
        Measurement::Streams => measure_streams().await,
        Measurement::UnresponsiveCollector => telemetry_overhead::measure_unresponsive_collector().await,
    }
}

/// Starts workers that share PostgreSQL, and a sandbox that renders sketches instead of scenes.
async fn start_workers(sandbox: Settings, workers: usize) -> Result<(TestEnv, Vec<Worker>)> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    env.sandbox = Sandbox::start(Settings { sketch: true, ..sandbox }).await?;
    env.set("STABILITY_RATE_LIMIT", RATE_LIMIT_PER_MINUTE.to_string());
    env.set("STABILITY_LOCKOUT", format!("{}s", LOCKOUT.as_secs()));
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(env.start_ready_worker().await?);
    }
    Ok((env, running))
}

async fn measure_quota(lockout: Option<Duration>) -> Result<MeasurementResult> {
    let minute = Duration::from_mins(1);
    let sandbox = Settings { limit: RATE_LIMIT_PER_MINUTE, window: minute, lockout: minute, ..Settings::default() };
    let (env, _workers) = start_workers(sandbox, 4).await?;
    publish_jobs(&env, JOBS, IMAGES_PER_JOB).await?;
    if lockout.is_some() {
        let middle = async || (env.sandbox.ledger().requests > 100).then_some(());
        wait_until("the middle of the run", MEASUREMENT_TIMEOUT, middle).await?;
        let order = FaultSpec { fault: "status=429".into(), times: Some(1), prompt_contains: None };
        env.sandbox.inject_fault(order).map_err(anyhow::Error::msg)?;
    }
    wait_for_jobs(&env, JOBS).await?;
    let arrivals = env.sandbox.request_log();
    let refused = arrivals.iter().filter(|arrival| arrival.status == Some(429)).count();
    let mut measured = MeasurementResult::default();
    measured.add_line("workers, jobs, images", format!("4, {JOBS}, {}", JOBS * IMAGES_PER_JOB));
    measured.add_line("permitted requests a minute", RATE_LIMIT_PER_MINUTE);
    measured.add_line("requests", arrivals.len());
    measured.add_line("responses 429", refused);
    if let Some(lockout) = lockout {
        let lockout_at = arrivals
            .iter()
            .find(|arrival| arrival.status == Some(429))
            .context("no request was answered with 429")?
            .received_at;
        let during = arrivals.iter().filter(|arrival| {
            let after = arrival.received_at.saturating_duration_since(lockout_at);
            after > IN_FLIGHT_WINDOW && after < lockout
        });
        let during = during.count();
        let before = arrivals
            .iter()
            .filter(|arrival| arrival.received_at > lockout_at && arrival.received_at <= lockout_at + IN_FLIGHT_WINDOW)
            .count();
        measured.add_line("rate-limit pause", format!("{lockout:?}"));
        measured.add_line("requests during the pause", during);
        measured.add_line("requests in flight when the pause began", before);
        let first = arrivals
            .iter()
            .find(|arrival| arrival.received_at >= lockout_at + lockout)
            .context("no request arrived after the pause")?
            .received_at;
        let within = arrivals
            .iter()
            .filter(|arrival| arrival.received_at >= first && arrival.received_at < first + Duration::from_secs(1));
        measured.add_line("requests in the first second after the pause", within.count());
        measured.passed = during == 0 && refused == 1;
    } else {
        // Without the last 5% of the requests: the last jobs have too few images left to use the whole rate.
        let count = arrivals.len() * 95 / 100;
        let used = rate_per_minute(arrivals[0].received_at, arrivals[count - 1].received_at, count - 1)
            / f64::from(RATE_LIMIT_PER_MINUTE);
        measured.add_line("share of the permitted rate that was used, in percent", format!("{:.1}", used * 100.0));
        measured.passed = used >= 0.97 && refused == 0;
    }
    Ok(measured)
}

/// Rate per minute.
#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn rate_per_minute(first: Instant, last: Instant, count: usize) -> f64 {
    count as f64 * 60.0 / last.duration_since(first).as_secs_f64()
}

async fn measure_scaling() -> Result<MeasurementResult> {
    let mut measured = MeasurementResult::default();
    let mut rates = Vec::new();
    for (workers, jobs, line) in [(1, 4, "images a minute of one worker"), (4, 16, "images a minute of four workers")] {
        let rate = measure_throughput(workers, jobs).await?;
        measured.add_line(line, format!("{rate:.0}"));
        rates.push(rate);
    }
    let ratio = rates[1] / rates[0];
    measured.add_line("ratio", format!("{ratio:.2}"));
    measured.passed = ratio >= 3.5;
    Ok(measured)
}

async fn measure_throughput(workers: usize, jobs: usize) -> Result<f64> {
    let no_quota = 100_000;
    let sandbox = Settings { limit: no_quota, latency: Duration::from_secs(2), ..Settings::default() };
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    env.sandbox = Sandbox::start(Settings { sketch: true, ..sandbox }).await?;
    env.set("STABILITY_RATE_LIMIT", no_quota.to_string());
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(env.start_ready_worker().await?);
    }
    let begun = Instant::now();
    publish_jobs(&env, jobs, IMAGES_PER_JOB).await?;
    wait_for_jobs(&env, jobs).await?;
    ensure!(env.sandbox.ledger().requests as usize == jobs * IMAGES_PER_JOB, "an image was requested more than once");
    Ok(rate_per_minute(begun, Instant::now(), jobs * IMAGES_PER_JOB))
}
