//! Files in `deploy/telemetry/`: alerts, dashboard and collector match the worker's metrics and the runbook.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use dev_services::wait;
use integration_tests::{
    Database, Prometheus, TestEnv, WAIT_TIMEOUT, command, documented_metrics, promtool, telemetry_folder,
};
use serde_json::{Value, json};

const OPERATIONS: &str = include_str!("../../docs/operations.md");
/// Labels that Prometheus adds.
const PROMETHEUS_LABELS: [&str; 3] = ["instance", "job", "le"];

fn read_telemetry_yaml(file: &str) -> Result<Value> {
    let path = telemetry_folder().join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

async fn run_promtool(arguments: &[&str]) -> Result<()> {
    let output = promtool()?.args(arguments).current_dir(telemetry_folder()).output().await?;
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    anyhow::ensure!(output.status.success(), "promtool {arguments:?}: {printed}");
    Ok(())
}

#[tokio::test]
async fn alerts_fire_exactly_under_their_conditions() -> Result<()> {
    run_promtool(&["check", "rules", "alerts.yaml"]).await?;
    run_promtool(&["test", "rules", "alerts.test.yaml"]).await?;
    let mut seen: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for test in elements(&read_telemetry_yaml("alerts.test.yaml")?["tests"]) {
        for case in elements(&test["alert_rule_test"]) {
            let fires = elements(&case["exp_alerts"]).count() > 0;
            seen.entry(case["alertname"].as_str().context("alertname is missing")?.to_owned())
                .or_default()
                .insert(fires);
        }
    }
    for alert in alerts()? {
        let name = alert["alert"].as_str().context("the alert has no name")?;
        assert_eq!(seen.get(name).map(BTreeSet::len), Some(2), "{name} is not tested both firing and not firing");
    }
    Ok(())
}

fn alerts() -> Result<Vec<Value>> {
    let groups = read_telemetry_yaml("alerts.yaml")?["groups"].clone();
    let alerts: Vec<Value> = elements(&groups).flat_map(|group| elements(&group["rules"])).cloned().collect();
    anyhow::ensure!(alerts.len() >= 10, "only {} alerts", alerts.len());
    Ok(alerts)
}

#[test]
fn every_alert_links_to_an_existing_runbook_section() -> Result<()> {
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-')).collect::<String>().replace(' ', "-")
    };
    let anchors: BTreeSet<String> = OPERATIONS.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    for alert in alerts()? {
        let url = alert["annotations"]["runbook_url"].as_str().with_context(|| alert.to_string())?;
        let (page, anchor) = url.split_once('#').with_context(|| url.to_owned())?;
        assert!(page.ends_with("/docs/operations.md") && anchors.contains(anchor), "{url}: {anchors:?}");
        let severity = &alert["labels"]["severity"];
        assert!(severity == "critical" || severity == "warning", "{alert}");
    }
    Ok(())
}

/// Metrics and labels of a query that are not documented.
fn unknown_metrics_and_labels(query: &str, page: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let own_prefixes = ["asset_worker_", "gen_ai_", "http_client_", "http_server_", "messaging_"];
    let mut unknown = Vec::new();
    let mut labels: BTreeSet<&str> = PROMETHEUS_LABELS.into_iter().collect();
    for name in query.split(|c| !word(c)).filter(|name| own_prefixes.iter().any(|prefix| name.starts_with(prefix))) {
        let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| name.strip_suffix(part));
        match parts.chain([name]).find_map(|name| page.get(name)) {
            Some(known) => labels.extend(known.iter().map(String::as_str)),
            // A label may begin like a metric.
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

/// All panels of the dashboard, including those in rows.
fn panels(dashboard: &Value) -> Vec<Value> {
    let panels = elements(&dashboard["panels"]);
    panels
        .flat_map(|panel| [panel.clone()].into_iter().chain(elements(&panel["panels"]).cloned()))
        .filter(|panel| panel["type"] != "row")
        .collect()
}

#[test]
fn alerts_and_panels_query_only_documented_metrics() -> Result<()> {
    let page = documented_metrics()?;
    assert_eq!(
        unknown_metrics_and_labels(
            "sum by (color) (rate(asset_worker_jobs_total{outcome=\"x\",size=\"y\"}[5m]))",
            &page
        ),
        ["size", "color"]
    );
    assert_eq!(unknown_metrics_and_labels("asset_worker_jobs", &page), ["asset_worker_jobs"]);
    for alert in alerts()? {
        let query = alert["expr"].as_str().context("the alert has no expr")?;
        assert!(
            unknown_metrics_and_labels(query, &page).is_empty(),
            "{query}: {:?}",
            unknown_metrics_and_labels(query, &page)
        );
    }
    let dashboard = read_telemetry_yaml("dashboard.json")?;
    let panels = panels(&dashboard);
    assert!(panels.len() >= 20, "only {} panels", panels.len());
    let mut asked = String::new();
    for panel in &panels {
        assert!(
            ["title", "description"].iter().all(|text| panel[*text].as_str().is_some_and(|text| !text.is_empty())),
            "{panel}"
        );
        for target in elements(&panel["targets"]) {
            let query = target["expr"].as_str().with_context(|| panel.to_string())?;
            assert!(
                unknown_metrics_and_labels(query, &page).is_empty(),
                "{query}: {:?}",
                unknown_metrics_and_labels(query, &page)
            );
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
fn collector_pipelines_use_only_declared_components() -> Result<()> {
    let collector = read_telemetry_yaml("collector.yaml")?;
    let pipelines = collector["service"]["pipelines"].as_object().context("collector.yaml has no pipelines")?;
    assert_eq!(pipelines.keys().collect::<Vec<_>>(), ["logs", "metrics", "traces"]);
    for (name, pipeline) in pipelines {
        for part in ["receivers", "processors", "exporters"] {
            for used in elements(&pipeline[part]) {
                let used = used.as_str().context("the component has no name")?;
                assert!(collector[part].get(used).is_some(), "{name}: {part}: {used} is not declared");
            }
            assert!(elements(&pipeline[part]).next().is_some(), "{name} has no {part}");
        }
    }
    Ok(())
}

/// The files that the services of the compose profile mount exist, and Prometheus accepts its configuration.
#[tokio::test]
async fn files_mounted_by_telemetry_profile_exist() -> Result<()> {
    let compose = read_telemetry_yaml("../compose.yaml")?;
    let services = compose["services"].as_object().context("compose.yaml has no services")?;
    let profile =
        services.iter().filter(|(_, service)| elements(&service["profiles"]).any(|profile| profile == "telemetry"));
    let names: Vec<&str> = profile.clone().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["collector", "grafana", "jaeger", "prometheus"]);
    for (name, service) in profile {
        for volume in elements(&service["volumes"]) {
            let (from, _) =
                volume.as_str().and_then(|volume| volume.split_once(':')).context("the volume has no source")?;
            assert!(telemetry_folder().join("..").join(from).is_file(), "{name}: {from} does not exist");
        }
    }
    // In the container the rules are in /etc/prometheus; here they are read from the repository.
    let folder = tempfile::tempdir()?;
    let config = std::fs::read_to_string(telemetry_folder().join("prometheus.yaml"))?;
    let file = folder.path().join("prometheus.yaml");
    std::fs::write(
        &file,
        config.replace("/etc/prometheus/alerts.yaml", &telemetry_folder().join("alerts.yaml").display().to_string()),
    )?;
    run_promtool(&["check", "config", &file.display().to_string()]).await
}

/// Two workers lose their broker; the alert rules use seconds instead of minutes.
#[tokio::test]
async fn prometheus_scrapes_workers_and_outage_fires_its_alert() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    let proxy = env.start_broker_proxy().await?;
    let (mut one, mut other) = (env.start_ready_worker().await?, env.start_ready_worker().await?);
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(42, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;
    let prometheus = Prometheus::start(env.folder(), &[one.address()?, other.address()?]).await?;
    let scraped = async |query: &str, value: f64| {
        let series = prometheus.query(query).await.ok()?;
        (series.len() == 1 && (series[0].1 - value).abs() < 0.1).then_some(())
    };
    wait::wait_until("both workers to be scraped", WAIT_TIMEOUT, async || scraped("sum(up)", 2.0).await).await?;
    wait::wait_until("both workers to be ready", WAIT_TIMEOUT, async || scraped("sum(asset_worker_ready)", 2.0).await)
        .await?;
    wait::wait_until("the completed job in the metrics", WAIT_TIMEOUT, async || {
        scraped("sum(asset_worker_jobs_total{outcome=\"completed\"})", 1.0).await
    })
    .await?;
    let well = async || {
        let rules = prometheus.get("rules?type=alert").await.ok()?;
        let rules: Vec<Value> =
            elements(&rules["groups"]).flat_map(|group| elements(&group["rules"])).cloned().collect();
        let evaluated = rules.iter().all(|rule| rule["health"] == "ok" && rule["lastError"].is_null());
        (evaluated && !rules.is_empty()).then_some(rules.len())
    };
    let evaluated = wait::wait_until("every rule to be evaluated without an error", WAIT_TIMEOUT, well).await?;
    assert_eq!(evaluated, alerts()?.len());
    // Before the first scrape no worker counts as ready.
    let over = async || prometheus.firing_alerts().await.ok()?.is_empty().then_some(());
    wait::wait_until("all alerts to be inactive", WAIT_TIMEOUT, over).await?;
    proxy.close();
    let fired = async || prometheus.firing_alerts().await.ok().filter(|firing| !firing.is_empty());
    assert_eq!(wait::wait_until("an alert to fire", WAIT_TIMEOUT, fired).await?, ["AssetWorkerNoneReady"]);
    proxy.open();
    one.wait_until_ready().await?;
    other.wait_until_ready().await?;
    wait::wait_until("the end of the alert", WAIT_TIMEOUT, over).await
}
