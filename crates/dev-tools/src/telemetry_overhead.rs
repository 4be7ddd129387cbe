//! Measures the overhead of telemetry with pairs of runs, with and without it. The runs of a pair follow each other
//! directly, so that their ratio is meaningful on a noisy machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::{Collector, Database, TestEnv};
use stability_sandbox::{Sandbox, Settings};
use tokio::net::TcpListener;

use crate::measurement_result::{MEASUREMENT_TIMEOUT, MeasurementResult, publish_jobs, wait_for_jobs};

/// Number of pairs of runs; the order in a pair alternates.
const PAIRS: usize = 10;
const JOBS: usize = 8;
const IMAGES_PER_JOB: usize = 20;
/// Jobs before the measured ones, so that connections are open and caches are warm.
const WARM_UP_JOBS: usize = 2;
const NO_QUOTA: u32 = 100_000;
/// Latency of the API when throughput is measured; when CPU time is measured, it answers at once.
const LATENCY: Duration = Duration::from_millis(400);

/// Where a worker sends its telemetry.
#[derive(Debug, Clone)]
enum TelemetryExport {
    Disabled,
    ToEndpoint(String),
}

/// Measured values of one run.
struct Run {
    images_per_s: f64,
    cpu_ms_per_image: f64,
}

/// Compares the CPU time per image with and without export of spans, metrics and log lines to a collector.
pub(crate) async fn measure_cpu_overhead() -> Result<MeasurementResult> {
    let collector = Collector::start().await?;
    let (off, on) = run_pairs(&TelemetryExport::ToEndpoint(collector.endpoint.clone()), Duration::ZERO).await?;
    ensure!(
        !collector.spans().is_empty() && !collector.log_records().is_empty(),
        "the collector received no spans or no log lines"
    );
    let mut measured = MeasurementResult::default();
    measured.add_line("runs, images each", format!("{}, {}", PAIRS * 2, JOBS * IMAGES_PER_JOB));
    measured.add_line("spans an image", format!("{:.1}", spans_per_image(collector.spans().len())));
    let (off, on) = (off.iter().map(|run| run.cpu_ms_per_image), on.iter().map(|run| run.cpu_ms_per_image));
    let ratio = compare(&mut measured, "CPU milliseconds an image", off.collect(), on.collect());
    measured.passed = ratio < 1.03;
    Ok(measured)
}

/// Compares the throughput with a collector that accepts connections and never answers to that without telemetry.
pub(crate) async fn measure_unresponsive_collector() -> Result<MeasurementResult> {
    let unresponsive = TcpListener::bind("127.0.0.1:0").await?;
    let (off, on) =
        run_pairs(&TelemetryExport::ToEndpoint(format!("http://{}", unresponsive.local_addr()?)), LATENCY).await?;
    let mut measured = MeasurementResult::default();
    measured.add_line("runs, images each", format!("{}, {}", PAIRS * 2, JOBS * IMAGES_PER_JOB));
    let (off, on) = (off.iter().map(|run| run.images_per_s), on.iter().map(|run| run.images_per_s));
    let ratio = compare(&mut measured, "images a second", off.collect(), on.collect());
    measured.passed = ratio > 0.98;
    Ok(measured)
}

/// Adds the comparison to the result and returns the median of the pairs' ratios (with telemetry to without).
fn compare(measured: &mut MeasurementResult, what: &'static str, off: Vec<f64>, on: Vec<f64>) -> f64 {
    let ratios: Vec<f64> = on.iter().zip(&off).map(|(on, off)| on / off).collect();
    measured.add_line(what, format!("{:.2} without, {:.2} with", median(off), median(on)));
    let (least, most) =
        ratios.iter().fold((f64::MAX, f64::MIN), |(least, most), ratio| (ratio.min(least), ratio.max(most)));
    let ratio = median(ratios);
    measured.add_line("ratio, median of the pairs", format!("{ratio:.3} ({least:.3} to {most:.3})"));
    ratio
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    f64::midpoint(values[(values.len() - 1) / 2], values[middle])
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn spans_per_image(count: usize) -> f64 {
    count as f64 / (PAIRS * (JOBS + WARM_UP_JOBS) * IMAGES_PER_JOB) as f64
}

async fn run_pairs(export: &TelemetryExport, latency: Duration) -> Result<(Vec<Run>, Vec<Run>)> {
    let (mut off, mut on) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        if pair % 2 == 0 {
            off.push(run(&TelemetryExport::Disabled, latency).await?);
            on.push(run(export, latency).await?);
        } else {
            on.push(run(export, latency).await?);
            off.push(run(&TelemetryExport::Disabled, latency).await?);
        }
    }
    Ok((off, on))
}

/// Runs one worker with an API that answers after `latency`.
#[expect(clippy::cast_precision_loss, reason = "some hundreds")]
async fn run(sent: &TelemetryExport, latency: Duration) -> Result<Run> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    env.sandbox = Sandbox::start(Settings { limit: NO_QUOTA, sketch: true, latency, ..Settings::default() }).await?;
    env.set("STABILITY_RATE_LIMIT", NO_QUOTA.to_string());
    if let TelemetryExport::ToEndpoint(endpoint) = sent {
        env.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.clone());
        env.set("OTEL_LOGS_EXPORTER", "otlp");
    }
    let worker = env.start_ready_worker().await?;
    publish_jobs(&env, WARM_UP_JOBS, IMAGES_PER_JOB).await?;
    wait_for_jobs(&env, WARM_UP_JOBS).await?;
    let (begun, cpu) = (Instant::now(), worker.usage().context("cannot read the worker's CPU time")?.cpu);
    publish_jobs(&env, JOBS, IMAGES_PER_JOB).await?;
    wait_for_jobs(&env, WARM_UP_JOBS + JOBS).await?;
    let took = begun.elapsed();
    ensure!(took < MEASUREMENT_TIMEOUT, "the run took {took:?}");
    let images = (JOBS * IMAGES_PER_JOB) as f64;
    let used: Duration = worker.usage().context("cannot read the worker's CPU time")?.cpu.saturating_sub(cpu);
    Ok(Run { images_per_s: images / took.as_secs_f64(), cpu_ms_per_image: used.as_secs_f64() * 1e3 / images })
}
