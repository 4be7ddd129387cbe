//! Times calls of `asset-worker serve`, one after the other.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use integration_tests::{Answer, ApiClient};
use reqwest::Method;
use serde_json::Value;

use crate::measurement_result::MeasurementResult;

/// Method, path and body of a call.
pub(crate) type Call = (Method, String, Option<Value>);

/// One kind of call: its name, and how often it was made how fast.
pub(crate) struct Timed {
    name: &'static str,
    times: Vec<Duration>,
}

impl Timed {
    fn median(&mut self) -> Duration {
        self.times.sort_unstable();
        self.times[self.times.len() / 2]
    }
}

/// Makes a call and adds its duration to those with the same name.
pub(crate) async fn time_call(api: &ApiClient, name: &'static str, call: Call, timed: &mut Vec<Timed>) -> Result<()> {
    let (method, path, body) = call;
    let started_at = Instant::now();
    let answer = match body {
        Some(body) => api.call(method, &path, &body).await?,
        None => api.send(api.request(method, &path)).await?,
    };
    let took = started_at.elapsed();
    check(name, &answer)?;
    match timed.iter_mut().find(|timed| timed.name == name) {
        Some(timed) => timed.times.push(took),
        None => timed.push(Timed { name, times: vec![took] }),
    }
    Ok(())
}

pub(crate) fn check(name: &str, answer: &Answer) -> Result<()> {
    ensure!((200..300).contains(&answer.status), "{name}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(())
}

/// Adds the median of each kind of call; the measurement passes if each is below `max`.
pub(crate) fn add_times(measured: &mut MeasurementResult, mut timed: Vec<Timed>, max: Duration) {
    measured.passed = true;
    for call in &mut timed {
        let median = call.median();
        measured.passed &= median < max;
        measured.add_line(call.name, format!("{:.1} ms", median.as_secs_f64() * 1e3));
    }
}

/// Adds the resident memory after each round, in MiB; the measurement does not pass if it grows after the second.
pub(crate) fn add_memory(measured: &mut MeasurementResult, memory: &[u32]) {
    let listed = memory.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    measured.add_line("resident memory after each round, in MiB", listed);
    measured.passed &= memory[memory.len() - 1] <= memory[1] + 4;
}
