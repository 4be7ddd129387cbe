//! Shared by all measurements: their result, and the jobs that they run.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::Result;
use dev_services::wait::wait_until;
use integration_tests::{TestEnv, command};
use serde_json::json;

/// Limit of every wait; longer than any of them takes.
pub(crate) const MEASUREMENT_TIMEOUT: Duration = Duration::from_mins(10);

/// Result of a measurement, as lines of names and values.
#[derive(Debug, Default)]
pub struct MeasurementResult {
    lines: Vec<(&'static str, String)>,
    /// Whether the result is within its bound.
    pub passed: bool,
}

impl Display for MeasurementResult {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | |\n| --- | ---: |")?;
        self.lines.iter().try_for_each(|(name, value)| writeln!(f, "| {name} | {value} |"))
    }
}

impl MeasurementResult {
    pub(crate) fn add_line(&mut self, name: &'static str, value: impl Display) {
        self.lines.push((name, value.to_string()));
    }
}

pub(crate) async fn publish_jobs(env: &TestEnv, jobs: usize, images: usize) -> Result<()> {
    let producer = env.connect_broker().await?;
    for job in 0..jobs {
        let descriptions: Vec<String> = (0..images).map(|image| format!("Scene {image} of {job}")).collect();
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        producer.publish(&command(1, &descriptions, &json!({"cache": "never"}))).await?;
    }
    Ok(())
}

pub(crate) async fn wait_for_jobs(env: &TestEnv, jobs: usize) -> Result<()> {
    let ended = async || {
        let rows = env.query_rows("SELECT id FROM jobs WHERE status = 'completed'").await.ok()?;
        (rows.len() == jobs).then_some(())
    };
    wait_until("the end of all jobs", MEASUREMENT_TIMEOUT, ended).await
}
