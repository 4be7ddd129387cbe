//! Renders the dashboard's panels for the documentation, from the data of a real Prometheus that scraped two workers
//! with injected faults.

mod drawing;

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use dev_services::wait::wait_until;
use serde_json::{Value, json};
use stability_sandbox::{Sandbox, Settings};

use drawing::{Panel, Series};
use integration_tests::{ApiClient, Database, Prometheus, TestEnv, command, telemetry_folder};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Limit of every wait; longer than any of them takes.
const WAIT_TIMEOUT: Duration = Duration::from_mins(5);
/// Time between two points of a series.
const STEP: Duration = Duration::from_secs(1);
/// Value of Grafana's `$__rate_interval`; the workers are scraped every second.
const RATE_INTERVAL: &str = "10s";

/// Runs a scenario with faults, which takes a minute and a half, and renders its dashboard to `file` as SVG.
///
/// # Errors
///
/// If the scenario cannot be completed or the file cannot be written.
pub async fn draw(file: &Path) -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.disable_log_output();
    let sandbox = Settings {
        limit: 240,
        window: Duration::from_mins(1),
        latency: Duration::from_millis(900),
        ..Settings::default()
    };
    env.sandbox = Sandbox::start(sandbox).await?;
    env.set("STABILITY_RATE_LIMIT", "240");
    env.set("STABILITY_LOCKOUT", "8s");
    env.set("STABILITY_RETRY_DELAYS", "1s,2s,3s");
    env.set("WORKER_DAILY_BUDGET_USD", "6");
    env.set("WORKER_JOB_RETRY_DELAYS", "5s");
    let proxy = env.start_broker_proxy().await?;
    let (mut one, mut other) = (env.start_ready_worker().await?, env.start_ready_worker().await?);
    let api = env.start_api().await?;
    let targets = [one.address()?, other.address()?, api.address().to_owned()];
    let prometheus = Prometheus::start(env.folder(), &targets).await?;
    let from = unix_seconds();
    wait_until("the first scrapes", WAIT_TIMEOUT, async || {
        prometheus.query("sum(up) > 2").await.ok().filter(|up| !up.is_empty())
    })
    .await?;
    let mut clients = JoinSet::new();
    clients.spawn(call_api(api.with_token(None)));
    let producer = env.connect_broker().await?;
    // A queue is bound, so that the terminal events are routed.
    let _events = producer.subscribe_to_events().await?;
    let publish_jobs = async |jobs: u32, config: Value| -> Result<()> {
        for job in 0..jobs {
            let scenes: Vec<String> = (0..10).map(|scene| format!("Scene {scene} of {job}")).collect();
            let scenes: Vec<&str> = scenes.iter().map(String::as_str).collect();
            producer.publish(&command(i64::from(job) + 1, &scenes, &config)).await?;
        }
        Ok(())
    };
    publish_jobs(8, json!({})).await?;
    wait_until("half of the requests", WAIT_TIMEOUT, async || (env.sandbox.ledger().requests > 40).then_some(()))
        .await?;
    env.inject_fault_times("status=500", Some(12), None)?;
    producer.publish(&command(50, &["A gory battle", "A gory field"], &json!({}))).await?;
    producer.publish_bytes(b"{}", None).await?;
    wait_until("more requests", WAIT_TIMEOUT, async || (env.sandbox.ledger().requests > 75).then_some(())).await?;
    env.inject_fault_times("status=429", Some(1), None)?;
    wait_for_jobs(&env, 8).await?;
    proxy.close();
    wait_until("the loss of the broker", WAIT_TIMEOUT, async || {
        one.probe("readyz").await.ok().filter(|(status, _)| *status == 503)
    })
    .await?;
    proxy.open();
    one.wait_until_ready().await?;
    other.wait_until_ready().await?;
    // The images were generated before: they come from the cache although the API fails.
    env.inject_fault("status=503", None)?;
    publish_jobs(2, json!({"cache": "prefer"})).await?;
    wait_for_jobs(&env, 10).await?;
    let scraped = async || {
        let waiting = prometheus.query("sum(asset_worker_jobs_in_flight)").await.ok()?;
        waiting.first().filter(|(_, value)| *value < 0.5).map(drop)
    };
    wait_until("the last scrape", WAIT_TIMEOUT, scraped).await?;
    let panels = load_panels(&prometheus, from, unix_seconds()).await?;
    std::fs::write(file, drawing::render_svg(&panels, from, unix_seconds())).with_context(|| file.display().to_string())
}

/// Lists the jobs, and watches the newest one, again and again.
async fn call_api(api: ApiClient) -> Result<()> {
    loop {
        let page = api.get("/v1/jobs?limit=1").await?.json();
        if let Some(id) = page["jobs"][0]["job_id"].as_str() {
            let mut events = api.watch(id, None).await?;
            // The first events are those that happened before.
            let _ = timeout(STEP, async { while let Ok(Some(_)) = events.next().await {} }).await;
        }
        sleep(STEP / 2).await;
    }
}

async fn wait_for_jobs(env: &TestEnv, jobs: u64) -> Result<()> {
    let all = async || {
        let rows = env.query_rows("SELECT count(*) AS ended FROM jobs WHERE status = 'completed'").await.ok()?;
        (rows[0]["ended"].as_u64()? >= jobs).then_some(())
    };
    wait_until("the end of the jobs", WAIT_TIMEOUT, all).await
}

/// Loads the panels of the dashboard with the results of their queries.
async fn load_panels(prometheus: &Prometheus, from: f64, to: f64) -> Result<Vec<Panel>> {
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(telemetry_folder().join("dashboard.json"))?)?;
    let range = format!("{:.0}s", to - from);
    let mut panels = Vec::new();
    for panel in dashboard["panels"].as_array().context("the dashboard has no panels")? {
        let text = |name: &str| panel[name].as_str().unwrap_or_default().to_owned();
        let mut lines = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().context("a target of a panel has no query")?;
            let query = query.replace("$__rate_interval", RATE_INTERVAL).replace("$__range", &range);
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            for (labels, points) in prometheus.query_range(&query, from, to, STEP).await? {
                let points = points.into_iter().filter(|(_, value)| value.is_finite()).collect();
                lines.push(Series { legend: fill_legend(legend, &labels), points });
            }
        }
        let place = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or_default());
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default().to_owned();
        panels.push(Panel { kind: text("type"), title: text("title"), unit, grid_position: place, series: lines });
    }
    Ok(panels)
}

/// Replaces a placeholder such as `{{outcome}}` by the value of the label.
fn fill_legend(legend: &str, labels: &Value) -> String {
    let mut filled = String::new();
    let mut rest = legend;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, behind) = after.split_once("}}").unwrap_or((after, ""));
        filled += before;
        filled += labels[name.trim()].as_str().unwrap_or_default();
        rest = behind;
    }
    filled + rest
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
