//! What the tests of the whole share. They know the built programs only from the outside: messages, rows, files, exit codes.
//!
//! In reading order: a [`World`] is a virtual host, a database, a folder and a sandbox that no other test sees; in it a
//! [`Worker`] runs, a [`Producer`] speaks to the broker, and [`Events`] hears what comes of it.

mod broker;
pub mod bucket;
mod collector;
mod files;
mod prometheus;
mod proxy;
mod samples;
mod world;

use std::time::Duration;

pub use broker::{Events, Message, Producer};
pub use bucket::Bucket;
pub use collector::{Collector, Line, Span};
pub use files::assert_files;
pub use prometheus::{Prometheus, promtool, views};
pub use proxy::Proxy;
pub use samples::{Samples, page};
pub use world::{Database, Done, Worker, World};

/// What takes longer than this does not happen. Tests never wait for it unless they fail.
pub const LIMIT: Duration = Duration::from_secs(90);

/// A command for these descriptions, with a new job id.
pub fn command(project_id: i64, descriptions: &[&str], config: &serde_json::Value) -> serde_json::Value {
    serde_json::json!({
        "job_id": uuid::Uuid::now_v7(),
        "project_id": project_id,
        "image_descriptions": descriptions,
        "config": config,
    })
}

/// The codes of a terminal event's failures, by index.
pub fn codes(data: &serde_json::Value) -> Vec<String> {
    let failures = data["failures"].as_array().map(Vec::as_slice).unwrap_or_default();
    failures.iter().map(|failure| failure["code"].as_str().unwrap_or_default().to_owned()).collect()
}

/// What `metadata` of a row holds. SQLite keeps JSON as text.
pub fn metadata(row: &serde_json::Value) -> serde_json::Value {
    match &row["metadata"] {
        serde_json::Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        other => other.clone(),
    }
}
