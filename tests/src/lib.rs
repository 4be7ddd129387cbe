//! Shared code of the black-box tests. They observe the built programs only from the outside: messages, rows, files and
//! exit codes.
//!
//! Reading order: a [`TestEnv`] is a virtual host, a database, a folder and an API sandbox that no other test
//! shares. A [`Worker`] runs in it, a [`BrokerClient`] publishes commands, and an [`EventStream`] receives the
//! resulting events.

mod api;
mod broker;
mod browser;
pub mod bucket;
mod collector;
mod files;
mod prometheus;
mod proxy;
mod samples;
mod test_env;

use std::time::Duration;

pub use api::{Answer, ApiClient, ApiServer, ServerEvent, ServerEvents};
pub use broker::{BrokerClient, EventStream, Message};
pub use browser::{Browser, BrowserOptions};
pub use bucket::Bucket;
pub use collector::{Collector, LogRecord, Span};
pub use files::assert_files;
pub use prometheus::{Prometheus, promtool, telemetry_folder};
pub use proxy::Proxy;
pub use samples::{Samples, documented_metrics};
pub use test_env::{Database, GenerateOutput, TestEnv, Usage, Worker};

/// The API key that the sandbox accepts and the programs of an environment use.
pub const API_KEY: &str = "sk-sandbox";
/// Upper bound of every wait. A test reaches it only when it fails.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

/// The number of jobs in a backlog: `BACKLOG_JOBS`, or `default` if it is not set.
pub fn backlog_size(default: u32) -> u32 {
    dev_services::env_var("BACKLOG_JOBS").map_or(default, |jobs| jobs.parse().expect("BACKLOG_JOBS is a number"))
}

/// Builds a command for these descriptions with a new job id.
pub fn command(project_id: i64, descriptions: &[&str], config: &serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "job_id": uuid::Uuid::now_v7(),
        "project_id": project_id,
        "image_descriptions": descriptions,
        "config": config,
    })
}

/// Formats values as one line of JSON each.
pub fn json_lines(values: impl Iterator<Item = serde_json::Value>) -> String {
    values.fold(String::new(), |lines, value| lines + value.to_string().as_str() + "\n")
}

/// Returns the failure codes of a terminal event, ordered by image index.
pub fn failure_codes(data: &serde_json::Value) -> Vec<String> {
    let failures = data["failures"].as_array().map(Vec::as_slice).unwrap_or_default();
    failures.iter().map(|failure| failure["code"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Parses the `metadata` column of a row; SQLite stores JSON as text.
pub fn metadata(row: &serde_json::Value) -> serde_json::Value {
    match &row["metadata"] {
        serde_json::Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        other => other.clone(),
    }
}
