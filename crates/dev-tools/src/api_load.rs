//! The HTTP API with a large database, and its event streams beside a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{ApiClient, BrokerClient, Database, TestEnv};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use crate::measurement_result::MeasurementResult;
use crate::old_jobs::OldJobs;
use crate::timed_calls::{Call, Timed, add_memory, add_times, check, time_call};
use crate::window::Window;

/// Ended jobs in the database.
pub(crate) const OLD_JOBS: u32 = 100_000;
/// Failed ones among them.
const FAILED_JOBS: u32 = 1_000;
/// Rounds of calls, and how often each call is made in one.
const ROUNDS: u32 = 4;
const CALLS: u32 = 200;
/// Dead letters on the queue.
const DEAD_LETTERS: u32 = 20;
/// Upper bound of the median of each call.
const MAX_MEDIAN: Duration = Duration::from_millis(50);

/// Event streams beside the worker.
const STREAMS: usize = 20;
/// Pairs of windows with and without streams, and the duration of each.
const PAIRS: u32 = 12;
const WINDOW: Duration = Duration::from_secs(10);
/// Images of a job.
const IMAGES: usize = 40;

/// Measures the median of each call but files, and the memory of the server.
pub(crate) async fn measure_calls() -> Result<MeasurementResult> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    ensure!(env.run(&["migrate"]).await?.status.success(), "migrate failed");
    insert_old_jobs(&env).await?;
    let mut api = env.start_api().await?;
    let producer = env.connect_broker().await?;
    for number in 0..DEAD_LETTERS {
        producer.publish_dead_letter(number.to_string().as_bytes()).await?;
    }
    let ids = JobIds { completed: read_ids(&env, "completed").await?, failed: read_ids(&env, "failed").await? };
    let cursor = deep_cursor(&api).await?;
    let mut timed: Vec<Timed> = Vec::new();
    let mut memory = Vec::new();
    for round in 0..ROUNDS {
        call_all(&api, &ids, &cursor, round, &mut timed).await?;
        call_for_dead_letters(&api, &producer, &mut timed).await?;
        memory.push(api.process().usage().context("the memory is not known")?.memory_kib / 1024);
    }
    let mut measured = MeasurementResult::default();
    measured.add_line("jobs in the database", OLD_JOBS);
    measured.add_line("calls of each kind", CALLS * ROUNDS);
    add_times(&mut measured, timed, MAX_MEDIAN);
    add_memory(&mut measured, &memory);
    Ok(measured)
}

/// Ended jobs, of which the oldest ones have failed.
pub(crate) async fn insert_old_jobs(env: &TestEnv) -> Result<()> {
    let old = OldJobs {
        count: OLD_JOBS,
        project: "n % 10 + 1",
        created_at: "now() - n * interval '10 seconds'",
        finished_at: "now() - n * interval '10 seconds' + interval '8 seconds'",
    };
    old.insert(env).await?;
    // The oldest ones have failed, each with its image.
    let oldest = format!("SELECT id FROM jobs ORDER BY created_at LIMIT {FAILED_JOBS}");
    env.execute(&format!(
        "UPDATE jobs SET status = 'failed', error_code = 'success_rate_too_low' WHERE id IN ({oldest})"
    ))
    .await?;
    env.execute(
        "UPDATE assets SET status = 'failed', error_code = 'timeout' WHERE job_id IN (SELECT id FROM jobs WHERE status = 'failed')",
    )
    .await?;
    Ok(())
}

/// Ids of old jobs.
struct JobIds {
    completed: Vec<String>,
    failed: Vec<String>,
}

pub(crate) async fn read_ids(env: &TestEnv, status: &str) -> Result<Vec<String>> {
    let newest = format!("SELECT id FROM jobs WHERE status = '{status}' ORDER BY created_at DESC LIMIT 1000");
    let rows = env.query_rows(&newest).await?;
    Ok(rows.iter().filter_map(|row| Some(row["id"].as_str()?.to_owned())).collect())
}

/// The cursor of a page in the middle of all jobs.
async fn deep_cursor(api: &ApiClient) -> Result<String> {
    let mut cursor = String::new();
    for _ in 0..OLD_JOBS / 2 / 500 {
        let page = api.get(&format!("/v1/jobs?limit=500{cursor}")).await?.json();
        cursor = format!("&cursor={}", page["next_cursor"].as_str().context("there is another page")?);
    }
    Ok(cursor)
}

/// Makes each call some times, one after the other.
async fn call_all(api: &ApiClient, ids: &JobIds, cursor: &str, round: u32, timed: &mut Vec<Timed>) -> Result<()> {
    let command = |number: u32| json!({"project_id": 3, "image_descriptions": [format!("Scene {number}")]});
    let new_ids: Vec<String> = (0..CALLS).map(|_| Uuid::now_v7().to_string()).collect();
    let id = |number: u32| ids.completed[number as usize % ids.completed.len()].as_str();
    let failed = |number: u32| ids.failed[(round * CALLS + number) as usize].as_str();
    let new_id = |number: u32| new_ids[number as usize].as_str();
    let get = |path: String| (Method::GET, path, None);
    let kinds: [(&'static str, &dyn Fn(u32) -> Call); 19] = [
        ("GET jobs", &|_| get("/v1/jobs".to_owned())),
        ("GET jobs of a project", &|n| get(format!("/v1/jobs?project_id={}", n % 10 + 1))),
        ("GET completed jobs", &|_| get("/v1/jobs?status=completed".to_owned())),
        ("GET failed jobs", &|_| get("/v1/jobs?status=failed".to_owned())),
        ("GET completed jobs of a project", &|n| get(format!("/v1/jobs?status=completed&project_id={}", n % 10 + 1))),
        ("GET jobs, after 50,000 others", &|_| get(format!("/v1/jobs?limit=50{cursor}"))),
        ("GET a job", &|n| get(format!("/v1/jobs/{}", id(n)))),
        ("GET the events of an ended job", &|n| get(format!("/v1/jobs/{}/events", id(n)))),
        ("PUT a job", &|n| (Method::PUT, format!("/v1/jobs/{}", new_id(n)), Some(command(n)))),
        ("PUT the same job again", &|n| (Method::PUT, format!("/v1/jobs/{}", new_id(n)), Some(command(n)))),
        ("POST cancel", &|n| (Method::POST, format!("/v1/jobs/{}/cancel", new_id(n)), Some(json!({})))),
        ("POST redo", &|n| {
            let body = json!({"image": 1, "seed": round * CALLS + n + 1});
            (Method::POST, format!("/v1/jobs/{}/redo", id(n)), Some(body))
        }),
        ("POST retry", &|n| (Method::POST, format!("/v1/jobs/{}/retry", failed(n)), Some(json!({})))),
        ("POST estimate", &|n| (Method::POST, "/v1/estimate".to_owned(), Some(command(n)))),
        ("GET account", &|_| get("/v1/account".to_owned())),
        ("POST pause", &|_| (Method::POST, "/v1/account/pause".to_owned(), Some(json!({})))),
        ("POST resume", &|_| (Method::POST, "/v1/account/resume".to_owned(), None)),
        ("GET 20 dead letters", &|_| get("/v1/dead-letters".to_owned())),
        ("GET openapi.json", &|_| get("/openapi.json".to_owned())),
    ];
    for (name, call) in kinds {
        for number in 0..CALLS {
            time_call(api, name, call(number), timed).await?;
        }
    }
    Ok(())
}

/// Replays and discards dead letters that are put on the queue before each call.
async fn call_for_dead_letters(api: &ApiClient, producer: &BrokerClient, timed: &mut Vec<Timed>) -> Result<()> {
    for number in 0..CALLS {
        for (name, method, action) in
            [("POST replay", Method::POST, "/replay"), ("DELETE a dead letter", Method::DELETE, "")]
        {
            producer.publish_dead_letter(format!("{name} {number}").as_bytes()).await?;
            let list = api.get("/v1/dead-letters").await?.json();
            let last = list["dead_letters"].as_array().and_then(|letters| letters.last()).context("a dead letter")?;
            let id = last["id"].as_str().context("an id")?;
            time_call(api, name, (method, format!("/v1/dead-letters/{id}{action}"), None), timed).await?;
        }
    }
    Ok(())
}

/// Compares the throughput of a worker with and without event streams.
pub(crate) async fn measure_streams() -> Result<MeasurementResult> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    env.sandbox.set_sketch(true);
    env.sandbox.set_credits(1e6);
    env.set("STABILITY_RATE_LIMIT", "100000");
    // As many as there are streams, so that each of them has something to send.
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", STREAMS.to_string());
    let api = env.start_api().await?;
    let mut ids = Vec::new();
    for job in 0..2_000 {
        let descriptions: Vec<String> = (0..IMAGES).map(|image| format!("Scene {image} of {job}")).collect();
        let id = Uuid::now_v7().to_string();
        let body = json!({"project_id": 1, "image_descriptions": descriptions, "config": {"cache": "never"}});
        check("PUT a job", &api.put(&format!("/v1/jobs/{id}"), &body).await?)?;
        ids.push(id);
    }
    let _worker = env.start_ready_worker().await?;
    sleep(Duration::from_secs(5)).await;
    let (mut with_streams, mut without) = (Window::default(), Window::default());
    let (mut ratios, received) = (Vec::new(), Arc::new(AtomicU32::new(0)));
    for _ in 0..PAIRS {
        let unended = unended_jobs(&api, &ids).await?;
        ensure!(unended.len() > 2 * STREAMS, "the backlog of the worker is used up");
        let mut streams = JoinSet::new();
        for id in unended.into_iter().take(STREAMS) {
            streams.spawn(watch_on(api.with_token(None), id, ids.clone(), received.clone()));
        }
        sleep(Duration::from_millis(500)).await;
        let ((), with) = Window::measure(&env, sleep(WINDOW)).await;
        streams.shutdown().await;
        sleep(Duration::from_millis(500)).await;
        let ((), alone) = Window::measure(&env, sleep(WINDOW)).await;
        ratios.push(with.rate() / alone.rate());
        with_streams.add(with);
        without.add(alone);
    }
    let listed = ratios.iter().map(|ratio| format!("{ratio:.3}")).collect::<Vec<_>>().join(", ");
    let ratio = with_streams.rate() / without.rate();
    let mut measured = MeasurementResult::default();
    measured.add_line("event streams", STREAMS);
    measured.add_line("images a second of a worker with streams", format!("{:.2}", with_streams.rate()));
    measured.add_line("images a second without", format!("{:.2}", without.rate()));
    measured.add_line("ratio of each pair", listed);
    measured.add_line("ratio of all", format!("{ratio:.3}"));
    measured.add_line("events that the streams received", received.load(Ordering::Relaxed));
    measured.passed = ratio > 0.97 && received.load(Ordering::Relaxed) > 0;
    Ok(measured)
}

/// Those of these jobs that have not ended, in their order.
async fn unended_jobs(api: &ApiClient, ids: &[String]) -> Result<Vec<String>> {
    let mut unended = Vec::new();
    for status in ["running", "waiting"] {
        let page = api.get(&format!("/v1/jobs?status={status}&limit=500")).await?.json();
        let jobs = page["jobs"].as_array().context("a list")?;
        unended.extend(jobs.iter().filter_map(|job| Some(job["job_id"].as_str()?.to_owned())));
    }
    unended.sort_by_key(|id| ids.iter().position(|known| known == id));
    Ok(unended)
}

/// Watches a job, then the next one, and so on, and counts the events.
async fn watch_on(api: ApiClient, mut id: String, ids: Vec<String>, received: Arc<AtomicU32>) -> Result<()> {
    loop {
        let mut stream = api.watch(&id, None).await?;
        while stream.next().await?.is_some() {
            received.fetch_add(1, Ordering::Relaxed);
        }
        let position = ids.iter().position(|known| *known == id).context("a known job")?;
        let Some(next) = ids.get(position + STREAMS) else { return Ok(()) };
        id.clone_from(next);
    }
}
