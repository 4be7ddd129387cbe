//! What several workers do side by side, measured: how much of the account's rate they use, what they do in a lock-out, how much more four get done than one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dev_services::wait::until;
use integration_tests::{Database, Worker, World};
use stability_sandbox::faults::FaultOrder;
use stability_sandbox::{Sandbox, Settings};

use crate::measured::{LIMIT, all_ended, publish};
use crate::overhead;

pub use crate::measured::Measured;

/// What the account may send in a minute.
const PER_MINUTE: u32 = 300;
/// What waits at once.
const JOBS: usize = 40;
const IMAGES: usize = 20;
/// How long the forced lock-out lasts.
const LOCKOUT: Duration = Duration::from_secs(15);
/// A request that was on its way when the lock-out was met arrives within this.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub enum Measurement {
    /// Four workers, forty jobs, a sandbox that locks out whoever goes above the account's limit.
    Quota,
    /// The same with a lock-out in the middle.
    Lockout,
    /// One worker and four, an API that takes two seconds, no quota.
    Workers,
    /// One worker with telemetry and without: the CPU time of an image.
    Telemetry,
    /// One worker with a collector that never answers and without: images a second.
    Deaf,
}

/// Measures, on the services that `dev-services run` has brought.
///
/// # Errors
///
/// Where it cannot be played to its end.
pub async fn measure(measurement: Measurement) -> Result<Measured> {
    match measurement {
        Measurement::Quota => quota(None).await,
        Measurement::Lockout => quota(Some(LOCKOUT)).await,
        Measurement::Workers => workers().await,
        Measurement::Telemetry => overhead::cpu().await,
        Measurement::Deaf => overhead::deaf().await,
    }
}

/// A world whose workers share PostgreSQL, and draw no scenes.
async fn world(sandbox: Settings, workers: usize) -> Result<(World, Vec<Worker>)> {
    let mut world = World::with(Database::Postgres).await?;
    world.be_quiet();
    world.sandbox = Sandbox::start(Settings { sketch: true, ..sandbox }).await?;
    world.set("STABILITY_RATE_LIMIT", PER_MINUTE.to_string());
    world.set("STABILITY_LOCKOUT", format!("{}s", LOCKOUT.as_secs()));
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(world.worker().await?);
    }
    Ok((world, running))
}

async fn quota(lockout: Option<Duration>) -> Result<Measured> {
    let minute = Duration::from_mins(1);
    let sandbox = Settings { limit: PER_MINUTE, window: minute, lockout: minute, ..Settings::default() };
    let (world, _workers) = world(sandbox, 4).await?;
    publish(&world, JOBS, IMAGES).await?;
    if lockout.is_some() {
        let middle = async || (world.sandbox.ledger().requests > 100).then_some(());
        until("the middle", LIMIT, middle).await?;
        let order = FaultOrder { fault: "status=429".into(), times: Some(1), prompt_contains: None };
        world.sandbox.order(order).map_err(anyhow::Error::msg)?;
    }
    all_ended(&world, JOBS).await?;
    let arrivals = world.sandbox.arrivals();
    let refused = arrivals.iter().filter(|arrival| arrival.status == Some(429)).count();
    let mut measured = Measured::default();
    measured.line("workers, jobs, images", format!("4, {JOBS}, {}", JOBS * IMAGES));
    measured.line("permitted requests a minute", PER_MINUTE);
    measured.line("requests", arrivals.len());
    measured.line("answers of 429", refused);
    if let Some(lockout) = lockout {
        let met = arrivals.iter().find(|arrival| arrival.status == Some(429)).context("nobody met the lock-out")?.at;
        let during = arrivals.iter().filter(|arrival| {
            let after = arrival.at.saturating_duration_since(met);
            after > ON_ITS_WAY && after < lockout
        });
        let during = during.count();
        let before = arrivals.iter().filter(|arrival| arrival.at > met && arrival.at <= met + ON_ITS_WAY).count();
        measured.line("lock-out", format!("{lockout:?}"));
        measured.line("requests during it", during);
        measured.line("requests that were on their way when it was met", before);
        let first = arrivals.iter().find(|arrival| arrival.at >= met + lockout).context("none came after it")?.at;
        let within =
            arrivals.iter().filter(|arrival| arrival.at >= first && arrival.at < first + Duration::from_secs(1));
        measured.line("requests in the first second after it", within.count());
        measured.well = during == 0 && refused == 1;
    } else {
        // What is left in the end is too little to use the whole rate.
        let count = arrivals.len() * 95 / 100;
        let used = rate(arrivals[0].at, arrivals[count - 1].at, count - 1) / f64::from(PER_MINUTE);
        measured.line("of the permitted rate used, in percent", format!("{:.1}", used * 100.0));
        measured.well = used >= 0.97 && refused == 0;
    }
    Ok(measured)
}

/// Events a minute.
#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn rate(first: Instant, last: Instant, count: usize) -> f64 {
    count as f64 * 60.0 / last.duration_since(first).as_secs_f64()
}

async fn workers() -> Result<Measured> {
    let mut measured = Measured::default();
    let mut rates = Vec::new();
    for (workers, jobs, line) in [(1, 4, "images a minute of one worker"), (4, 16, "images a minute of four workers")] {
        let rate = throughput(workers, jobs).await?;
        measured.line(line, format!("{rate:.0}"));
        rates.push(rate);
    }
    let ratio = rates[1] / rates[0];
    measured.line("ratio", format!("{ratio:.2}"));
    measured.well = ratio >= 3.5;
    Ok(measured)
}

async fn throughput(workers: usize, jobs: usize) -> Result<f64> {
    let no_quota = 100_000;
    let sandbox = Settings { limit: no_quota, latency: Duration::from_secs(2), ..Settings::default() };
    let mut world = World::with(Database::Postgres).await?;
    world.be_quiet();
    world.sandbox = Sandbox::start(Settings { sketch: true, ..sandbox }).await?;
    world.set("STABILITY_RATE_LIMIT", no_quota.to_string());
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(world.worker().await?);
    }
    let begun = Instant::now();
    publish(&world, jobs, IMAGES).await?;
    all_ended(&world, jobs).await?;
    ensure!(world.sandbox.ledger().requests as usize == jobs * IMAGES, "a picture was asked for twice");
    Ok(rate(begun, Instant::now(), jobs * IMAGES))
}
