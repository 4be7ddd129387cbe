//! The dashboard's panels, drawn from what a real Prometheus has scraped of two workers that have a hard time: for looking at, and for the docs.

mod drawing;

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use dev_services::wait::until;
use serde_json::{Value, json};
use stability_sandbox::{Sandbox, Settings};

use drawing::{Line, Panel};
use integration_tests::{Database, Prometheus, World, command, views};

/// Longer than any of this takes.
const LIMIT: Duration = Duration::from_mins(5);
/// Between two points of a line.
const STEP: Duration = Duration::from_secs(1);
/// What `$__rate_interval` stands for: scrapes come every second.
const RATE_INTERVAL: &str = "10s";

/// Plays a hard day in a minute and a half, and draws the dashboard of it.
///
/// # Errors
///
/// Where it cannot be played to its end, or the file not be written.
pub async fn draw(file: &Path) -> Result<()> {
    let mut world = World::with(Database::Postgres).await?;
    world.be_quiet();
    let sandbox = Settings {
        limit: 240,
        window: Duration::from_mins(1),
        latency: Duration::from_millis(900),
        ..Settings::default()
    };
    world.sandbox = Sandbox::start(sandbox).await?;
    world.set("STABILITY_RATE_LIMIT", "240");
    world.set("STABILITY_LOCKOUT", "8s");
    world.set("STABILITY_RETRY_DELAYS", "1s,2s,3s");
    world.set("WORKER_DAILY_BUDGET_USD", "6");
    world.set("WORKER_JOB_RETRY_DELAYS", "5s");
    let proxy = world.broker_proxy().await?;
    let (mut one, mut other) = (world.worker().await?, world.worker().await?);
    let prometheus = Prometheus::start(world.folder(), &[one.address()?, other.address()?]).await?;
    let from = now();
    until("first scrapes", LIMIT, async || prometheus.query("sum(up) > 1").await.ok().filter(|up| !up.is_empty()))
        .await?;
    let producer = world.producer().await?;
    // Somebody hears of the jobs.
    let _events = producer.events().await?;
    let sent = async |jobs: u32, config: Value| -> Result<()> {
        for job in 0..jobs {
            let scenes: Vec<String> = (0..10).map(|scene| format!("Scene {scene} of {job}")).collect();
            let scenes: Vec<&str> = scenes.iter().map(String::as_str).collect();
            producer.publish(&command(i64::from(job) + 1, &scenes, &config)).await?;
        }
        Ok(())
    };
    sent(8, json!({})).await?;
    until("half of it", LIMIT, async || (world.sandbox.ledger().requests > 40).then_some(())).await?;
    world.order_times("status=500", Some(12), None)?;
    producer.publish(&command(50, &["A gory battle", "A gory field"], &json!({}))).await?;
    producer.publish_bytes(b"{}", None).await?;
    until("more of it", LIMIT, async || (world.sandbox.ledger().requests > 75).then_some(())).await?;
    world.order_times("status=429", Some(1), None)?;
    ended(&world, 8).await?;
    proxy.close();
    until("the loss", LIMIT, async || one.probe("readyz").await.ok().filter(|(status, _)| *status == 503)).await?;
    proxy.open();
    one.ready().await?;
    other.ready().await?;
    // Made before: from the cache, where the API fails.
    world.order("status=503", None)?;
    sent(2, json!({"cache": "prefer"})).await?;
    ended(&world, 10).await?;
    let scraped = async || {
        let waiting = prometheus.query("sum(asset_worker_jobs_in_flight)").await.ok()?;
        waiting.first().filter(|(_, value)| *value < 0.5).map(drop)
    };
    until("the last scrape", LIMIT, scraped).await?;
    let panels = panels(&prometheus, from, now()).await?;
    std::fs::write(file, drawing::svg(&panels, from, now())).with_context(|| file.display().to_string())
}

async fn ended(world: &World, jobs: u64) -> Result<()> {
    let all = async || {
        let rows = world.rows("SELECT count(*) AS ended FROM jobs WHERE status = 'completed'").await.ok()?;
        (rows[0]["ended"].as_u64()? >= jobs).then_some(())
    };
    until("the end of the jobs", LIMIT, all).await
}

/// Each panel of the dashboard with what its queries give.
async fn panels(prometheus: &Prometheus, from: f64, to: f64) -> Result<Vec<Panel>> {
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(views().join("dashboard.json"))?)?;
    let range = format!("{:.0}s", to - from);
    let mut panels = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let text = |name: &str| panel[name].as_str().unwrap_or_default().to_owned();
        let mut lines = Vec::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().context("a query")?;
            let query = query.replace("$__rate_interval", RATE_INTERVAL).replace("$__range", &range);
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            for (labels, points) in prometheus.range(&query, from, to, STEP).await? {
                let points = points.into_iter().filter(|(_, value)| value.is_finite()).collect();
                lines.push(Line { legend: filled(legend, &labels), points });
            }
        }
        let place = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or_default());
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default().to_owned();
        panels.push(Panel { kind: text("type"), title: text("title"), unit, place, lines });
    }
    Ok(panels)
}

/// `{{outcome}}` is the label's value.
fn filled(legend: &str, labels: &Value) -> String {
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

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
