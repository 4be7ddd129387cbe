//! CPU time for an image: one worker makes many photo-like images, and the time of its process is counted.
//!
//! In reading order: `photos` makes the images that the sandbox returns; a round lets one build of the worker run all
//! jobs; `profile` samples one more run and shows where the time goes.

mod photos;
mod profile;

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration_tests::{Database, TestEnv, Usage};

use crate::measurement_result::{publish_jobs, wait_for_jobs};

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
    /// Whether one more run of the worker is sampled with `perf`.
    pub profile: bool,
}

/// What one run has used.
#[derive(Debug, Clone, Copy)]
struct Round {
    cpu_ms_per_image: f64,
    images_per_second: f64,
    faults_per_image: f64,
    peak_mib: f64,
}

/// The measured rounds of one build, or of both.
#[derive(Debug)]
pub struct CpuReport {
    builds: Vec<(&'static str, Vec<Round>)>,
    /// Parts of the CPU time: name and share.
    parts: Vec<(&'static str, f64)>,
}

impl CpuPlan {
    fn image_count(&self) -> f64 {
        f64::from(u32::try_from(self.jobs * self.images).unwrap_or(u32::MAX))
    }
}

/// Runs the rounds with the services that `dev-services run` provides.
///
/// # Errors
///
/// If a run cannot be completed, or `perf` is missing although a profile is wanted.
pub async fn measure(plan: &CpuPlan) -> Result<CpuReport> {
    let photos = photos::take(10).await?;
    let mut builds = vec![("this build", None, Vec::new())];
    builds.extend(plan.baseline.clone().map(|program| ("baseline", Some(program), Vec::new())));
    for _ in 0..plan.rounds {
        for (_, program, rounds) in &mut builds {
            rounds.push(run_once(plan, program.clone(), &photos, None).await?);
        }
    }
    let mut parts = Vec::new();
    if plan.profile {
        let recording = profile::Recording::new()?;
        run_once(plan, None, &photos, Some(&recording)).await?;
        parts = recording.into_parts().await?;
    }
    let builds = builds.into_iter().map(|(name, _, rounds)| (name, rounds)).collect();
    Ok(CpuReport { builds, parts })
}

/// One worker with an API that answers at once, two jobs of four images in flight, and SQLite.
async fn run_once(
    plan: &CpuPlan,
    program: Option<PathBuf>,
    photos: &[bytes::Bytes],
    recording: Option<&profile::Recording>,
) -> Result<Round> {
    let mut env = TestEnv::with_database(Database::Sqlite).await?;
    env.disable_log_output();
    env.use_program(program);
    env.sandbox.set_prepared_images(photos.to_vec());
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "2");
    env.set("STABILITY_RATE_LIMIT", "100000");
    let worker = env.start_ready_worker().await?;
    let sampled = recording.map(|recording| recording.attach(&worker)).transpose()?;
    let before = worker.usage().context("the system does not report the use of a process")?;
    let started = Instant::now();
    publish_jobs(&env, plan.jobs, plan.images).await?;
    wait_for_jobs(&env, plan.jobs).await?;
    let (elapsed, after) = (started.elapsed(), worker.usage().context("the worker has exited")?);
    drop(sampled);
    Ok(Round::new(plan, elapsed, before, after))
}

impl Round {
    fn new(plan: &CpuPlan, elapsed: Duration, before: Usage, after: Usage) -> Self {
        let images = plan.image_count();
        let faults = u32::try_from(after.page_faults - before.page_faults).unwrap_or(u32::MAX);
        Self {
            cpu_ms_per_image: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1_000.0 / images,
            images_per_second: images / elapsed.as_secs_f64(),
            faults_per_image: f64::from(faults) / images,
            peak_mib: f64::from(after.peak_memory_kib) / 1_024.0,
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Display for CpuReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| median of the rounds | CPU ms an image | images a second | page faults an image | peak MiB |")?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: |")?;
        for (name, rounds) in &self.builds {
            let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
            let (cpu, rate) = (of(|round| round.cpu_ms_per_image), of(|round| round.images_per_second));
            let (faults, peak) = (of(|round| round.faults_per_image), of(|round| round.peak_mib));
            writeln!(f, "| {name} | {cpu:.1} | {rate:.1} | {faults:.0} | {peak:.0} |")?;
        }
        if let [(_, these), (_, baseline)] = &self.builds[..] {
            let ratios = these.iter().zip(baseline).map(|(one, other)| one.cpu_ms_per_image / other.cpu_ms_per_image);
            writeln!(f, "\nCPU compared with the baseline, median of the pairs: {:.3}", median(ratios))?;
        }
        if !self.parts.is_empty() {
            let cpu = median(self.builds[0].1.iter().map(|round| round.cpu_ms_per_image));
            writeln!(f, "\n| part | share | CPU ms an image |\n| --- | ---: | ---: |")?;
            for (name, share) in &self.parts {
                writeln!(f, "| {name} | {:.1}% | {:.2} |", share * 100.0, share * cpu)?;
            }
        }
        Ok(())
    }
}
