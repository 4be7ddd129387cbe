//! Prometheus server for one test, with the deployed alert rules sped up sixty times.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::{Process, command_with_death_signal, log_tail};
use dev_services::services::PROMETHEUS_VAR;
use dev_services::{env_var, wait};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::WAIT_TIMEOUT;

/// Folder of the deployed telemetry configuration.
pub fn telemetry_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/telemetry")
}

/// Builds a `promtool` command.
pub fn promtool() -> Result<Command> {
    Ok(command_with_death_signal(&prometheus_folder()?.join("promtool"), "TERM"))
}

fn prometheus_folder() -> Result<PathBuf> {
    let given = env_var(PROMETHEUS_VAR);
    Ok(given
        .with_context(|| {
            format!("{PROMETHEUS_VAR} is not set: run the tests with `make test`, which provides Prometheus")
        })?
        .into())
}

/// A running Prometheus; dropping it stops the process.
pub struct Prometheus {
    url: String,
    _process: Process,
}

impl Prometheus {
    /// Starts a server that scrapes these addresses every second, and waits until it is ready.
    pub async fn start(folder: &Path, targets: &[String]) -> Result<Self> {
        let rules = folder.join("alerts.yaml");
        std::fs::write(&rules, speed_up_rules(&std::fs::read_to_string(telemetry_folder().join("alerts.yaml"))?))?;
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "asset-worker", "static_configs": [{"targets": targets}]}],
        });
        // Prometheus reads YAML, and JSON is valid YAML.
        let file = folder.join("prometheus.yaml");
        std::fs::write(&file, config.to_string())?;
        let [address] = wait::free_addresses()?;
        let mut command = command_with_death_signal(&prometheus_folder()?.join("prometheus"), "TERM");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()))
            .arg(format!("--web.listen-address={address}"));
        let log = folder.join("prometheus.log");
        let mut process = Process::start_logged("prometheus", command, &log)?;
        let url = format!("http://{address}");
        let client = dev_services::http_client()?;
        let ready = process.wait_until("Prometheus to be ready", WAIT_TIMEOUT, async || {
            client.get(format!("{url}/-/ready")).send().await.ok().filter(|answer| answer.status() == 200)
        });
        ready.await.with_context(|| log_tail(&log))?;
        Ok(Self { url, _process: process })
    }

    /// Requests a path of the HTTP API and returns `data`; a status other than `success` is an error.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let answer = dev_services::http_client()?.get(format!("{}/api/v1/{path}", self.url)).send().await?;
        let answer: Value = serde_json::from_str(&answer.text().await?)?;
        anyhow::ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].clone())
    }

    /// Runs an instant query and returns the labels and the value of each series.
    pub async fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let url = url::Url::parse_with_params("http://x/query", [("query", query)])?;
        let data = self.get(&format!("query?{}", url.query().unwrap_or_default())).await?;
        let series = data["result"].as_array().cloned().unwrap_or_default();
        let parse_series = |series: Value| {
            let value = series["value"][1].as_str()?.parse().ok()?;
            Some((series["metric"].clone(), value))
        };
        Ok(series.into_iter().filter_map(parse_series).collect())
    }

    /// Runs a range query and returns the labels of each series with its pairs of Unix seconds and value.
    pub async fn query_range(
        &self,
        query: &str,
        from: f64,
        to: f64,
        step: Duration,
    ) -> Result<Vec<(Value, Vec<(f64, f64)>)>> {
        let (from, to, step) = (from.to_string(), to.to_string(), step.as_secs_f64().to_string());
        let params = [("query", query), ("start", &from), ("end", &to), ("step", &step)];
        let url = url::Url::parse_with_params("http://x/query", params)?;
        let data = self.get(&format!("query_range?{}", url.query().unwrap_or_default())).await?;
        let series = data["result"].as_array().cloned().unwrap_or_default();
        let point = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_str()?.parse().ok()?));
        let points = |series: &Value| series["values"].as_array().into_iter().flatten().filter_map(point).collect();
        Ok(series.iter().map(|series| (series["metric"].clone(), points(series))).collect())
    }

    /// Returns the names of the firing alerts, sorted and without duplicates.
    pub async fn firing_alerts(&self) -> Result<Vec<String>> {
        let alerts = self.get("alerts").await?["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let mut names: Vec<String> =
            firing.filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned())).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// Turns the minutes of durations into seconds, and the evaluation interval of 15 s into 1 s.
fn speed_up_rules(rules: &str) -> String {
    let lines = rules.lines().map(|line| {
        let has_duration = line.trim_start().starts_with("for:") || line.contains('[');
        if !has_duration {
            return line.replace("interval: 15s", "interval: 1s");
        }
        let mut faster = String::new();
        for c in line.chars() {
            let after_digit = faster.ends_with(|before: char| before.is_ascii_digit());
            faster.push(if c == 'm' && after_digit { 's' } else { c });
        }
        faster
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_minute_durations_become_seconds() {
        let check = |slow: &str, fast: &str| assert_eq!(speed_up_rules(slow), fast);
        check("  for: 10m", "  for: 10s");
        check("  sum(increase(some_30m_total[30m])) > 5", "  sum(increase(some_30s_total[30s])) > 5");
        check("  description: of 10m", "  description: of 10m");
        check("    interval: 15s", "    interval: 1s");
    }
}
