//! The pages with a large database.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{ApiClient, Database, TestEnv};
use reqwest::Method;

use crate::api_load::{OLD_JOBS, insert_old_jobs, read_ids};
use crate::measurement_result::MeasurementResult;
use crate::timed_calls::{Timed, add_memory, add_times, time_call};

/// Rounds of pages, and how often each is loaded in one.
const ROUNDS: u32 = 4;
const LOADS: u32 = 50;
/// Dead letters on the queue.
const DEAD_LETTERS: u32 = 20;
/// Changes in the audit.
const CHANGES: u32 = 100_000;
/// Upper bound of the median of each page.
const MAX_MEDIAN: Duration = Duration::from_millis(100);

/// Measures the median of each page, and the memory of the server.
pub(crate) async fn measure_pages() -> Result<MeasurementResult> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    ensure!(env.run(&["migrate"]).await?.status.success(), "migrate failed");
    insert_old_jobs(&env).await?;
    insert_others(&env).await?;
    let mut api = env.start_api().await?;
    let producer = env.connect_broker().await?;
    for number in 0..DEAD_LETTERS {
        producer.publish_dead_letter(number.to_string().as_bytes()).await?;
    }
    let (completed, large) = (read_ids(&env, "completed").await?, large_job(&env).await?);
    let mut timed: Vec<Timed> = Vec::new();
    let mut memory = Vec::new();
    // The first one of a process reads 24 hours, which are kept.
    time_call(&api, "overview, first", (Method::GET, "/".to_owned(), None), &mut timed).await?;
    for _ in 0..ROUNDS {
        load_all(&api, &completed, &large, &mut timed).await?;
        memory.push(api.process().usage().context("the memory is not known")?.memory_kib / 1024);
    }
    let mut measured = MeasurementResult::default();
    measured.add_line("jobs in the database", OLD_JOBS);
    measured.add_line("loads of each page", LOADS * ROUNDS);
    add_times(&mut measured, timed, MAX_MEDIAN);
    add_memory(&mut measured, &memory);
    Ok(measured)
}

/// One rare description, one job of 200 images, 30 days of spending, 100 workers, and many changes.
async fn insert_others(env: &TestEnv) -> Result<()> {
    let newest = "SELECT id FROM jobs ORDER BY created_at DESC LIMIT 1";
    let middle = format!("SELECT id FROM jobs ORDER BY created_at LIMIT 1 OFFSET {}", OLD_JOBS / 2);
    let statements = [
        format!(
            "UPDATE assets SET metadata = jsonb_set(metadata::jsonb, '{{description}}', '\"Zebras at dawn\"')::json \
             WHERE job_id = ({middle})"
        ),
        format!(
            "INSERT INTO assets (id, project_id, job_id, \"index\", type, status, file_path, metadata, fingerprint, format, \
             width, height, size_bytes, sha256, requests, charged, created_at, updated_at) \
             SELECT gen_random_uuid(), project_id, job_id, n, type, status, file_path || n, metadata, gen_random_uuid(), \
             format, width, height, size_bytes, sha256, requests, charged, created_at, updated_at \
             FROM assets, generate_series(2, 200) n WHERE job_id = ({newest})"
        ),
        format!("UPDATE jobs SET total = 200 WHERE id = ({newest})"),
        "INSERT INTO spending (day, requests, micro_usd) SELECT to_char(now() - n * interval '1 day', 'YYYY-MM-DD'), 9000, \
         180000000 FROM generate_series(0, 29) n"
            .to_owned(),
        "INSERT INTO workers (id, host, version, started_at, seen_at_ms, jobs) SELECT gen_random_uuid(), 'worker-' || n, \
         '0.1.0', now(), extract(epoch FROM now()) * 1000, 4 FROM generate_series(1, 100) n"
            .to_owned(),
        format!(
            "INSERT INTO audit (id, at, role, address, action) SELECT gen_random_uuid(), now(), 'full', '10.0.0.1', 'submit' \
             FROM generate_series(1, {CHANGES})"
        ),
        "ANALYZE".to_owned(),
    ];
    for statement in statements {
        env.execute(&statement).await?;
    }
    Ok(())
}

async fn large_job(env: &TestEnv) -> Result<String> {
    let rows = env.query_rows("SELECT id FROM jobs WHERE total = 200").await?;
    rows.first().and_then(|row| row["id"].as_str()).map(str::to_owned).context("a job of 200 images")
}

/// Loads each page some times, one after the other.
async fn load_all(api: &ApiClient, completed: &[String], large: &str, timed: &mut Vec<Timed>) -> Result<()> {
    let id = |number: u32| completed[number as usize % completed.len()].as_str();
    let pages: [(&'static str, &dyn Fn(u32) -> String); 18] = [
        ("overview", &|_| "/".to_owned()),
        ("jobs", &|_| "/jobs".to_owned()),
        ("jobs with a status", &|_| "/jobs?status=failed".to_owned()),
        ("jobs of a project", &|n| format!("/jobs?project={}", n % 10 + 1)),
        ("jobs with a failure of their own", &|_| "/jobs?failure=success_rate_too_low".to_owned()),
        ("jobs with a failure of an image", &|_| "/jobs?failure=timeout".to_owned()),
        ("jobs with a failure of an image that none has", &|_| "/jobs?failure=storage".to_owned()),
        ("job by its id", &|n| format!("/jobs?job={}", id(n))),
        ("jobs by the beginning of their id", &|n| format!("/jobs?job={}", &id(n)[..4])),
        ("jobs with a description that all have", &|_| "/jobs?description=A+fox".to_owned()),
        ("jobs with a rare description", &|_| "/jobs?description=Zebras".to_owned()),
        ("jobs with a description that none has", &|_| "/jobs?description=B".to_owned()),
        ("job", &|n| format!("/jobs/{}", id(n))),
        ("job of 200 images", &|_| format!("/jobs/{large}")),
        ("picture", &|n| format!("/jobs/{}/images/1", id(n))),
        ("new job", &|_| "/jobs/new".to_owned()),
        ("20 dead letters", &|_| "/dead-letters".to_owned()),
        ("account", &|_| "/account".to_owned()),
    ];
    for (name, page) in pages {
        for number in 0..LOADS {
            time_call(api, name, (Method::GET, page(number), None), timed).await?;
        }
    }
    Ok(())
}
