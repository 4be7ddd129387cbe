//! The design that the worker replaces: a Celery worker with Pillow, `celery_design.py`, with the same API and broker.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use dev_services::process::{Process, Signal, command_with_death_signal, log_tail};
use dev_services::wait::wait_until;
use integration_tests::{API_KEY, TestEnv, Usage};
use tokio::process::Command;

use super::{Round, image_count, photo_env};
use crate::measurement_result::{MEASUREMENT_TIMEOUT, publish_jobs, wait_for_jobs};

const SCRIPT: &str = include_str!("celery_design.py");
const JOBS: usize = 4;
const IMAGES: usize = 10;
/// Processes of the Celery worker: as many as the machine has processors that measurements assume.
const CONCURRENCY: &str = "2";
/// How many files of the worker Pillow encodes again.
const COMPARED_FILES: usize = 10;

/// What the Celery design has used, and how large files are compared with Pillow's.
#[derive(Debug)]
pub(super) struct CeleryResult {
    pub(super) round: Round,
    /// For each file of the worker: its size, divided by the size that Pillow needs for the same pixels.
    size_ratios: Vec<f64>,
}

impl CeleryResult {
    pub(super) fn mean_size_ratio(&self) -> f64 {
        self.size_ratios.iter().sum::<f64>() / image_count(self.size_ratios.len(), 1)
    }

    pub(super) fn largest_size_ratio(&self) -> f64 {
        self.size_ratios.iter().copied().fold(f64::NAN, f64::max)
    }
}

/// Runs jobs with the Celery design, and lets Pillow encode files of the worker again.
pub(super) async fn measure(python: &Path, photos: &[Bytes]) -> Result<CeleryResult> {
    let size_ratios = compare_sizes(python, photos).await?;
    let env = photo_env(photos).await?;
    let design = CeleryDesign::new(python, &env)?;
    let publish = |jobs: usize, images: usize| design.run(["publish".to_owned(), jobs.to_string(), images.to_string()]);
    let log = env.folder().join("celery.log");
    let mut command = design.command();
    command.args([
        "-m",
        "celery",
        "--app",
        "celery_design",
        "worker",
        "--loglevel",
        "INFO",
        "--concurrency",
        CONCURRENCY,
    ]);
    let process = Process::start_logged("celery worker", command, &log)?;
    let finished = async |images: usize| {
        let what = format!("{images} images of the Celery design");
        wait_until(&what, MEASUREMENT_TIMEOUT, async || (files_below(env.folder(), "png") >= images).then_some(()))
            .await
    };
    // The first jobs import the libraries, in each process.
    publish(2, 2).await?;
    finished(4).await.with_context(|| log_tail(&log))?;
    let processes = process.id().map(group_members).unwrap_or_default();
    ensure!(processes.len() > 1, "the processes of the Celery worker are not found");
    let before = sum_usage(&processes)?;
    let started = Instant::now();
    publish(JOBS, IMAGES).await?;
    finished(4 + JOBS * IMAGES).await.with_context(|| log_tail(&log))?;
    let (elapsed, after) = (started.elapsed(), sum_usage(&processes)?);
    process.stop(Signal::TERM, Duration::from_secs(10)).await;
    Ok(CeleryResult { round: Round::new(image_count(JOBS, IMAGES), elapsed, before, after), size_ratios })
}

/// Lets Pillow encode files of a worker again.
async fn compare_sizes(python: &Path, photos: &[Bytes]) -> Result<Vec<f64>> {
    let env = photo_env(photos).await?;
    let worker = env.start_ready_worker().await?;
    publish_jobs(&env, 1, COMPARED_FILES).await?;
    wait_for_jobs(&env, 1).await?;
    drop(worker);
    let design = CeleryDesign::new(python, &env)?;
    let mut ratios = Vec::new();
    for row in env.query_rows("SELECT file_path FROM assets").await? {
        let file = env.stored_path(row["file_path"].as_str().context("an image has a file")?);
        let pillow: f64 = design.run(["size".to_owned(), file.display().to_string()]).await?.trim().parse()?;
        let size = u32::try_from(std::fs::metadata(&file)?.len())?;
        ratios.push(f64::from(size) / pillow);
    }
    Ok(ratios)
}

struct CeleryDesign<'a> {
    python: &'a Path,
    env: &'a TestEnv,
}

impl<'a> CeleryDesign<'a> {
    fn new(python: &'a Path, env: &'a TestEnv) -> Result<Self> {
        std::fs::write(env.folder().join("celery_design.py"), SCRIPT)?;
        Ok(Self { python, env })
    }

    fn command(&self) -> Command {
        let mut command = command_with_death_signal(self.python, "TERM");
        command
            .current_dir(self.env.folder())
            .env("AMQP_URL", &self.env.amqp_url)
            .env("STABILITY_API_KEY", API_KEY)
            .env("STABILITY_BASE_URL", self.env.sandbox.base_url());
        command
    }

    async fn run(&self, arguments: impl IntoIterator<Item = String>) -> Result<String> {
        let output = self.command().arg("celery_design.py").args(arguments).output().await;
        let output = output.with_context(|| format!("cannot run {}", self.python.display()))?;
        ensure!(
            output.status.success(),
            "{} lacks Celery, httpx, Pillow or SQLAlchemy, or the design failed: {}",
            self.python.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Number of files with this extension in a folder and those below it.
fn files_below(folder: &Path, extension: &str) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let count = |path: PathBuf| {
        let is_wanted = path.extension().is_some_and(|found| found == extension);
        if path.is_dir() { files_below(&path, extension) } else { usize::from(is_wanted) }
    };
    entries.map(count).sum()
}

/// The processes of a group.
fn group_members(leader: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The group is the third field after the process name.
        let group = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(2)?.parse().ok());
        group == Some(leader)
    })
    .collect()
}

/// What several processes have used together.
fn sum_usage(processes: &[u32]) -> Result<Usage> {
    let usages = processes.iter().map(|pid| Usage::of_process(*pid).context("a process of Celery has exited"));
    let sum = |one: Usage, other: Usage| Usage {
        cpu: one.cpu + other.cpu,
        page_faults: one.page_faults + other.page_faults,
        memory_kib: one.memory_kib + other.memory_kib,
        peak_memory_kib: one.peak_memory_kib + other.peak_memory_kib,
    };
    usages.reduce(|one, other| Ok(sum(one?, other?))).context("no process")?
}
