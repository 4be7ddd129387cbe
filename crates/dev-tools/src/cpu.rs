//! CPU time for an image: one worker makes many photo-like images, and the time of its process is counted.
//!
//! In reading order: `crate::photos` makes the images that the sandbox returns; a `Round` lets one build of the worker
//! run all jobs; `celery` lets the design that the worker replaces run some; `profile` shows where the time goes,
//! `allocations` counts; `start_up` and `long_runs` measure what their names say; `report` prints all of it.

mod allocations;
mod celery;
mod long_runs;
mod perf;
mod profile;
mod report;
mod start_up;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use integration_tests::{Database, TestEnv, Usage};

use crate::measurement_result::{publish_jobs, wait_for_jobs};
use crate::photos;
use long_runs::LongRun;
use perf::Recording;

pub use report::CpuReport;

/// Parameters of a measurement.
#[derive(Debug, Clone)]
pub struct CpuPlan {
    /// Number of jobs.
    pub jobs: usize,
    /// Images of each job.
    pub images: usize,
    /// How often each build runs.
    pub rounds: usize,
    /// Another build of the worker to compare with; both run in turn.
    pub baseline: Option<PathBuf>,
    /// A Python that has `celery`, `httpx`, `pillow` and `sqlalchemy`: the design that the worker replaces runs too.
    pub celery: Option<PathBuf>,
    /// Whether two more runs of the worker are observed with `perf`: one is sampled, one counts allocations.
    pub profile: bool,
    /// Whether a job of 200 images and 2,000 jobs of one image run, to observe the memory.
    pub long_runs: bool,
}

/// What one run has used.
#[derive(Debug, Clone, Copy)]
struct Round {
    cpu_ms_per_image: f64,
    images_per_second: f64,
    faults_per_image: f64,
    peak_mib: f64,
}

/// Runs all measurements with the services that `dev-services run` provides.
///
/// # Errors
///
/// If a run cannot be completed, or a program that the plan needs is missing.
pub async fn measure(plan: &CpuPlan) -> Result<CpuReport> {
    let photos = photos::take(10).await?;
    let mut report = CpuReport::default();
    let mut builds = vec![("this build", None, Vec::new())];
    builds.extend(plan.baseline.clone().map(|program| ("baseline", Some(program), Vec::new())));
    for _ in 0..plan.rounds {
        for (_, program, rounds) in &mut builds {
            rounds.push(run_once(plan, program.clone(), &photos, None).await?);
        }
    }
    report.builds = builds.into_iter().map(|(name, _, rounds)| (name, rounds)).collect();
    if let Some(python) = &plan.celery {
        report.celery = Some(celery::measure(python, &photos).await?);
    }
    if plan.profile {
        let sampling = Recording::sampling()?;
        run_once(plan, None, &photos, Some(&sampling)).await?;
        report.parts = profile::read_parts(&sampling).await?;
        let counting = Recording::counting(&allocations::EVENTS)?;
        let _probes = allocations::Probes::add()?;
        run_once(plan, None, &photos, Some(&counting)).await?;
        report.allocations_per_image = Some(allocations::read_count(&counting)? / image_count(plan.jobs, plan.images));
    }
    report.start_up = start_up::measure(&photos).await?;
    if plan.long_runs {
        for run in [LongRun { jobs: 1, images: 200 }, LongRun { jobs: 2_000, images: 1 }] {
            report.long_runs.push(run.measure(&photos).await?);
        }
    }
    Ok(report)
}

/// One worker with an API that answers at once, two jobs of four images in flight, and SQLite.
async fn run_once(
    plan: &CpuPlan,
    program: Option<PathBuf>,
    photos: &[Bytes],
    recording: Option<&Recording>,
) -> Result<Round> {
    let mut env = photo_env(photos).await?;
    env.use_program(program);
    let worker = env.start_ready_worker().await?;
    let attached = match recording {
        Some(recording) => Some(recording.attach(worker.id().context("the worker has exited")?)?),
        None => None,
    };
    let before = worker.usage().context("the system does not report the use of a process")?;
    let started = Instant::now();
    publish_jobs(&env, plan.jobs, plan.images).await?;
    wait_for_jobs(&env, plan.jobs).await?;
    let (elapsed, after) = (started.elapsed(), worker.usage().context("the worker has exited")?);
    drop(attached);
    Ok(Round::new(image_count(plan.jobs, plan.images), elapsed, before, after))
}

/// An environment whose API returns the photos, without a quota that would slow a worker down.
async fn photo_env(photos: &[Bytes]) -> Result<TestEnv> {
    let mut env = TestEnv::with_database(Database::Sqlite).await?;
    env.disable_log_output();
    env.sandbox.set_prepared_images(photos.to_vec());
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "2");
    env.set("STABILITY_RATE_LIMIT", "100000");
    Ok(env)
}

fn image_count(jobs: usize, images: usize) -> f64 {
    f64::from(u32::try_from(jobs * images).unwrap_or(u32::MAX))
}

fn to_mib(kib: u32) -> f64 {
    f64::from(kib) / 1_024.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Round {
    fn new(images: f64, elapsed: Duration, before: Usage, after: Usage) -> Self {
        let faults = u32::try_from(after.page_faults - before.page_faults).unwrap_or(u32::MAX);
        Self {
            cpu_ms_per_image: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1_000.0 / images,
            images_per_second: images / elapsed.as_secs_f64(),
            faults_per_image: f64::from(faults) / images,
            peak_mib: to_mib(after.peak_memory_kib),
        }
    }
}
