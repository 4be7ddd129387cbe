//! What measurements share: their result, and jobs to measure.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::Result;
use dev_services::wait::until;
use integration_tests::{World, command};
use serde_json::json;

/// Longer than any of this takes.
pub(crate) const LIMIT: Duration = Duration::from_mins(10);

/// What was measured, in lines of names and values.
#[derive(Debug, Default)]
pub struct Measured {
    lines: Vec<(&'static str, String)>,
    /// Whether it is as it must be.
    pub well: bool,
}

impl Display for Measured {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | |\n| --- | ---: |")?;
        self.lines.iter().try_for_each(|(name, value)| writeln!(f, "| {name} | {value} |"))
    }
}

impl Measured {
    pub(crate) fn line(&mut self, name: &'static str, value: impl Display) {
        self.lines.push((name, value.to_string()));
    }
}

pub(crate) async fn publish(world: &World, jobs: usize, images: usize) -> Result<()> {
    let producer = world.producer().await?;
    for job in 0..jobs {
        let descriptions: Vec<String> = (0..images).map(|image| format!("Scene {image} of {job}")).collect();
        let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
        producer.publish(&command(1, &descriptions, &json!({"cache": "never"}))).await?;
    }
    Ok(())
}

pub(crate) async fn all_ended(world: &World, jobs: usize) -> Result<()> {
    let ended = async || {
        let rows = world.rows("SELECT count(*) AS ended FROM jobs WHERE status = 'completed'").await.ok()?;
        (rows[0]["ended"].as_u64()? == jobs as u64).then_some(())
    };
    until("the end of all jobs", LIMIT, ended).await
}
