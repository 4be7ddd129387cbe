//! Throughput of a worker while a purge removes 100,000 jobs beside it.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use integration_tests::{Database, TestEnv};
use serde_json::Value;
use tokio::time::sleep;

use crate::measurement_result::{MeasurementResult, publish_jobs};
use crate::old_jobs::OldJobs;
use crate::window::Window;

/// Jobs to purge, in so many rounds.
const OLD_JOBS: u32 = 100_000;
const ROUNDS: u32 = 10;
/// Their project.
const PROJECT: u32 = 1_000;
/// The jobs of a round ended within this many seconds of each other, long before those of the next round.
const ROUND_SECONDS: u32 = 100_000;
/// Backlog of the worker, in jobs and images a job; more than it can do.
const BACKLOG: (usize, usize) = (3_000, 20);
/// Time in which the worker gets up to speed.
const WARM_UP: Duration = Duration::from_secs(5);

/// Measures the throughput of a worker with a purge and without one, in turns, and compares each purge with its dry run.
pub(crate) async fn measure_purge() -> Result<MeasurementResult> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    env.sandbox.set_sketch(true);
    env.sandbox.set_credits(1e6);
    env.set("STABILITY_RATE_LIMIT", "100000");
    let migrated = env.run(&["migrate"]).await?;
    ensure!(migrated.status.success(), "migrate failed");
    // Sixty days ago.
    let first_end = SystemTime::now() - Duration::from_hours(60 * 24);
    insert_old_jobs(&env, first_end).await?;
    create_files(&env).await?;
    let _worker = env.start_ready_worker().await?;
    publish_jobs(&env, BACKLOG.0, BACKLOG.1).await?;
    sleep(WARM_UP).await;
    let (mut ratios, mut purged) = (Vec::new(), 0);
    let (mut with_purge, mut without) = (Window::default(), Window::default());
    for round in 0..ROUNDS {
        let age = first_end.elapsed()?.as_secs() - u64::from(round + 1) * u64::from(ROUND_SECONDS) + 1_000;
        let age = format!("{age}s");
        let purge = ["purge", "--older-than", &age, "--files", "--json"];
        let said = run_json(&env, &[&purge[..], &["--dry-run"]].concat()).await?;
        let (removed, with) = Window::measure(&env, run_json(&env, &purge)).await;
        let removed = removed?;
        for key in ["jobs", "images", "files", "file_bytes"] {
            ensure!(said[key] == removed[key], "{key}: the dry run said {said}, and {removed} was removed");
        }
        purged += removed["jobs"].as_u64().context("jobs is missing")?;
        let ((), alone) = Window::measure(&env, sleep(Duration::from_secs_f64(with.seconds / 2.0))).await;
        ensure!(alone.images > 0.0, "the backlog of the worker is used up");
        ratios.push(with.rate() / alone.rate());
        with_purge.add(with);
        without.add(alone);
    }
    ensure!(purged == u64::from(OLD_JOBS), "{purged} jobs were purged");
    ensure!(count_files(&env)? == 0, "files of purged jobs are left");
    let listed = ratios.iter().map(|ratio| format!("{ratio:.3}")).collect::<Vec<_>>().join(", ");
    let ratio = with_purge.rate() / without.rate();
    let mut measured = MeasurementResult::default();
    measured.add_line("purged jobs, each with an image and a file", purged);
    measured.add_line("seconds that the purges took", format!("{:.0}", with_purge.seconds));
    measured.add_line("images a second of a worker with a purge", format!("{:.2}", with_purge.rate()));
    measured.add_line("images a second without one, between the purges", format!("{:.2}", without.rate()));
    measured.add_line("ratio of each round", listed);
    measured.add_line("ratio of all", format!("{ratio:.3}"));
    measured.passed = ratio > 0.95;
    Ok(measured)
}

async fn run_json(env: &TestEnv, arguments: &[&str]) -> Result<Value> {
    let mut command = env.asset_worker_command(arguments)?;
    let output = command.output().await?;
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Inserts the jobs, in rounds by the time of their end.
async fn insert_old_jobs(env: &TestEnv, first_end: SystemTime) -> Result<()> {
    let first_end = first_end.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let jobs_a_round = OLD_JOBS / ROUNDS;
    let finished_at =
        format!("to_timestamp({first_end} + (n / {jobs_a_round}) * {ROUND_SECONDS} + n % {jobs_a_round})");
    let (project, created_at) = (PROJECT.to_string(), "now() - interval '60 days'");
    OldJobs { count: OLD_JOBS, project: &project, created_at, finished_at: &finished_at }.insert(env).await
}

fn project_folder(env: &TestEnv) -> std::path::PathBuf {
    env.stored_path(&format!("projects/{PROJECT}/assets"))
}

/// Writes the file of each job.
async fn create_files(env: &TestEnv) -> Result<()> {
    std::fs::create_dir_all(project_folder(env))?;
    for row in env.query_rows("SELECT file_path FROM assets").await? {
        std::fs::write(env.stored_path(row["file_path"].as_str().context("file_path is missing")?), "image")?;
    }
    Ok(())
}

fn count_files(env: &TestEnv) -> Result<usize> {
    Ok(std::fs::read_dir(project_folder(env))?.count())
}
