//! What lies in `deploy/telemetry/`: alerts, dashboard, collector. They speak of what the worker exposes, and of what the runbook has.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use dev_services::wait;
use integration_tests::{Database, LIMIT, Prometheus, World, command, page, promtool, views};
use serde_json::{Value, json};

const RUNBOOK: &str = include_str!("../../docs/RUNBOOK.md");
/// Labels that Prometheus adds.
const ADDED: [&str; 3] = ["instance", "job", "le"];

fn read(file: &str) -> Result<Value> {
    let path = views().join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

async fn told(arguments: &[&str]) -> Result<()> {
    let output = promtool()?.args(arguments).current_dir(views()).output().await?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    anyhow::ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(())
}

#[tokio::test]
async fn the_alerts_fire_when_they_must_and_only_then() -> Result<()> {
    told(&["check", "rules", "alerts.yaml"]).await?;
    told(&["test", "rules", "alerts.test.yaml"]).await?;
    let mut seen: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for test in list(&read("alerts.test.yaml")?["tests"]) {
        for case in list(&test["alert_rule_test"]) {
            let fires = list(&case["exp_alerts"]).count() > 0;
            seen.entry(case["alertname"].as_str().context("a name")?.to_owned()).or_default().insert(fires);
        }
    }
    for alert in alerts()? {
        let name = alert["alert"].as_str().context("a name")?;
        assert_eq!(seen.get(name).map(BTreeSet::len), Some(2), "{name} is not tested both ways");
    }
    Ok(())
}

fn alerts() -> Result<Vec<Value>> {
    let groups = read("alerts.yaml")?["groups"].clone();
    let alerts: Vec<Value> = list(&groups).flat_map(|group| list(&group["rules"])).cloned().collect();
    anyhow::ensure!(alerts.len() >= 10, "{} alerts", alerts.len());
    Ok(alerts)
}

#[test]
fn each_alert_leads_to_a_part_of_the_runbook_that_is_there() -> Result<()> {
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-')).collect::<String>().replace(' ', "-")
    };
    let anchors: BTreeSet<String> = RUNBOOK.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    for alert in alerts()? {
        let url = alert["annotations"]["runbook_url"].as_str().with_context(|| alert.to_string())?;
        let (page, anchor) = url.split_once('#').with_context(|| url.to_owned())?;
        assert!(page.ends_with("/docs/RUNBOOK.md") && anchors.contains(anchor), "{url}: {anchors:?}");
        let severity = &alert["labels"]["severity"];
        assert!(severity == "critical" || severity == "warning", "{alert}");
    }
    Ok(())
}

/// Metrics and labels of a query that are not on the page.
fn unknown(query: &str, page: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let ours = ["asset_worker_", "gen_ai_", "http_client_", "messaging_"];
    let mut unknown = Vec::new();
    let mut labels: BTreeSet<&str> = ADDED.into_iter().collect();
    for name in query.split(|c| !word(c)).filter(|name| ours.iter().any(|prefix| name.starts_with(prefix))) {
        let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| name.strip_suffix(part));
        match parts.chain([name]).find_map(|name| page.get(name)) {
            Some(known) => labels.extend(known.iter().map(String::as_str)),
            // A label may begin as a metric does.
            None if page.values().any(|labels| labels.contains(name)) => {}
            None => unknown.push(name.to_owned()),
        }
    }
    let selectors =
        query.split('{').skip(1).filter_map(|rest| rest.split_once('}')).flat_map(|(inside, _)| inside.split(','));
    let selected = selectors.filter_map(|matcher| matcher.split(['=', '!']).next());
    let grouped =
        query.split("by (").skip(1).filter_map(|rest| rest.split_once(')')).flat_map(|(inside, _)| inside.split(','));
    unknown.extend(
        selected
            .chain(grouped)
            .map(str::trim)
            .filter(|label| !label.is_empty() && !labels.contains(label))
            .map(str::to_owned),
    );
    unknown
}

/// The panels of the dashboard, those in rows too.
fn panels(dashboard: &Value) -> Vec<Value> {
    let panels = list(&dashboard["panels"]);
    panels
        .flat_map(|panel| [panel.clone()].into_iter().chain(list(&panel["panels"]).cloned()))
        .filter(|panel| panel["type"] != "row")
        .collect()
}

#[test]
fn alerts_and_panels_ask_for_what_the_worker_exposes() -> Result<()> {
    let page = page()?;
    assert_eq!(
        unknown("sum by (color) (rate(asset_worker_jobs_total{outcome=\"x\",size=\"y\"}[5m]))", &page),
        ["size", "color"]
    );
    assert_eq!(unknown("asset_worker_jobs", &page), ["asset_worker_jobs"]);
    for alert in alerts()? {
        let query = alert["expr"].as_str().context("an expression")?;
        assert!(unknown(query, &page).is_empty(), "{query}: {:?}", unknown(query, &page));
    }
    let dashboard = read("dashboard.json")?;
    let panels = panels(&dashboard);
    assert!(panels.len() >= 20, "{} panels", panels.len());
    let mut asked = String::new();
    for panel in &panels {
        assert!(
            ["title", "description"].iter().all(|text| panel[*text].as_str().is_some_and(|text| !text.is_empty())),
            "{panel}"
        );
        for target in list(&panel["targets"]) {
            let query = target["expr"].as_str().with_context(|| panel.to_string())?;
            assert!(unknown(query, &page).is_empty(), "{query}: {:?}", unknown(query, &page));
            asked += query;
        }
    }
    for name in page.keys() {
        let shown = asked.contains(name.as_str())
            || ["asset_worker_heartbeat_age_seconds", "messaging_process_duration_seconds"].contains(&name.as_str());
        assert!(shown || asked.contains(&format!("{name}_bucket")), "{name} is on no panel");
    }
    Ok(())
}

#[test]
fn the_collectors_pipelines_are_made_of_what_it_declares() -> Result<()> {
    let collector = read("collector.yaml")?;
    let pipelines = collector["service"]["pipelines"].as_object().context("pipelines")?;
    assert_eq!(pipelines.keys().collect::<Vec<_>>(), ["logs", "metrics", "traces"]);
    for (name, pipeline) in pipelines {
        for part in ["receivers", "processors", "exporters"] {
            for used in list(&pipeline[part]) {
                let used = used.as_str().context("a name")?;
                assert!(collector[part].get(used).is_some(), "{name}: {part}: {used} is not declared");
            }
            assert!(list(&pipeline[part]).next().is_some(), "{name} has no {part}");
        }
    }
    Ok(())
}

/// What a service of the compose file is given is there, and Prometheus takes its own.
#[tokio::test]
async fn what_the_profile_mounts_is_there() -> Result<()> {
    let compose = read("../compose.yaml")?;
    let services = compose["services"].as_object().context("services")?;
    let profile =
        services.iter().filter(|(_, service)| list(&service["profiles"]).any(|profile| profile == "telemetry"));
    let names: Vec<&str> = profile.clone().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["collector", "grafana", "jaeger", "prometheus"]);
    for (name, service) in profile {
        for volume in list(&service["volumes"]) {
            let (from, _) = volume.as_str().and_then(|volume| volume.split_once(':')).context("a volume")?;
            assert!(views().join("..").join(from).is_file(), "{name}: {from} is not there");
        }
    }
    // Where it is mounted, its rules lie beside it.
    let folder = tempfile::tempdir()?;
    let config = std::fs::read_to_string(views().join("prometheus.yaml"))?;
    let file = folder.path().join("prometheus.yaml");
    std::fs::write(
        &file,
        config.replace("/etc/prometheus/alerts.yaml", &views().join("alerts.yaml").display().to_string()),
    )?;
    told(&["check", "config", &file.display().to_string()]).await
}

/// Two workers that lose their broker, with rules whose minutes are seconds.
#[tokio::test]
async fn prometheus_scrapes_two_workers_and_an_outage_fires_its_alert() -> Result<()> {
    let mut world = World::with(Database::Postgres).await?;
    let proxy = world.broker_proxy().await?;
    let (mut one, mut other) = (world.worker().await?, world.worker().await?);
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    producer.publish(&command(42, &["A fox"], &json!({}))).await?;
    events.until("completed").await?;
    let prometheus = Prometheus::start(world.folder(), &[one.address()?, other.address()?]).await?;
    let scraped = async |query: &str, value: f64| {
        let series = prometheus.query(query).await.ok()?;
        (series.len() == 1 && (series[0].1 - value).abs() < 0.1).then_some(())
    };
    wait::until("both to be scraped", LIMIT, async || scraped("sum(up)", 2.0).await).await?;
    wait::until("both to be ready", LIMIT, async || scraped("sum(asset_worker_ready)", 2.0).await).await?;
    wait::until("the job", LIMIT, async || scraped("sum(asset_worker_jobs_total{outcome=\"completed\"})", 1.0).await)
        .await?;
    let well = async || {
        let rules = prometheus.get("rules?type=alert").await.ok()?;
        let rules: Vec<Value> = list(&rules["groups"]).flat_map(|group| list(&group["rules"])).cloned().collect();
        let evaluated = rules.iter().all(|rule| rule["health"] == "ok" && rule["lastError"].is_null());
        (evaluated && !rules.is_empty()).then_some(rules.len())
    };
    let evaluated = wait::until("every rule to be evaluated without an error", LIMIT, well).await?;
    assert_eq!(evaluated, alerts()?.len());
    // Before the first scrape nobody is ready.
    let over = async || prometheus.firing().await.ok()?.is_empty().then_some(());
    wait::until("no alert", LIMIT, over).await?;
    proxy.close();
    let fired = async || prometheus.firing().await.ok().filter(|firing| !firing.is_empty());
    assert_eq!(wait::until("an alert", LIMIT, fired).await?, ["AssetWorkerNoneReady"]);
    proxy.open();
    one.ready().await?;
    other.ready().await?;
    wait::until("the end of the alert", LIMIT, over).await
}
