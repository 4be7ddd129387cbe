//! How long a job would take, from the quota, the concurrency, the queue and the durations of earlier jobs.

use std::num::NonZeroUsize;

use domain::command::Command;
use domain::upscaler::Upscaler;
use schemars::JsonSchema;
use serde::Serialize;
use store::JobDuration;

use super::Inputs;
use crate::settings::Settings;

/// Seconds that a request takes if no job has been measured.
const ASSUMED_SECONDS_PER_REQUEST: f64 = 8.0;

/// How long a job would take.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct DurationEstimate {
    /// Seconds until its end: `waiting_seconds` and `running_seconds`.
    pub(crate) total_seconds: Option<f64>,
    /// Seconds until a worker takes the command. `None` without a broker or a worker, and while the account gate is
    /// closed.
    pub(crate) waiting_seconds: Option<f64>,
    /// Seconds that the job itself takes.
    pub(crate) running_seconds: Option<f64>,
    /// Commands that wait on the queue.
    pub(crate) waiting_commands: Option<u32>,
    /// Workers that take commands from the queue.
    pub(crate) workers: Option<u32>,
    /// Seconds that a request takes, from its start to the stored image.
    pub(crate) seconds_per_request: f64,
    /// Number of recent jobs in which that was measured; 0 if it is assumed.
    pub(crate) measured_jobs: usize,
}

/// Estimates the duration of a job that generates `to_generate` images.
pub(super) fn estimate(
    settings: &Settings,
    inputs: &Inputs,
    command: &Command,
    to_generate: Option<u32>,
    upscaler: Upscaler,
) -> DurationEstimate {
    let allowed = settings.stability.max_concurrent;
    let measured = median(inputs.durations.iter().filter_map(|job| seconds_per_request(job, allowed)));
    let seconds_per_request = measured.unwrap_or(ASSUMED_SECONDS_PER_REQUEST);
    let throughput =
        Throughput { requests_a_second: f64::from(settings.stability.rate_limit.get()) / 60.0, seconds_per_request };
    let requests_per_image = if upscaler == Upscaler::Fast { 2 } else { 1 };
    let concurrency = command.config.max_concurrent(allowed);
    let running =
        to_generate.map(|images| throughput.seconds(f64::from(images * requests_per_image), concurrency.get(), 1));
    let waiting_commands = inputs.waiting_commands();
    let workers = inputs.workers();
    let waiting = match (waiting_commands, workers) {
        _ if inputs.is_gate_closed() => None,
        (Some(commands), Some(workers @ 1..)) => {
            let usual = mean_requests(&inputs.durations);
            let requests =
                usual.unwrap_or_else(|| f64::from(u32::try_from(command.image_descriptions.len()).unwrap_or(0)));
            Some(throughput.seconds(f64::from(commands) * requests, allowed.get(), workers))
        }
        _ => None,
    };
    let round = |seconds: f64| (seconds * 10.0).round() / 10.0;
    DurationEstimate {
        total_seconds: waiting.zip(running).map(|(waiting, running)| round(waiting + running)),
        waiting_seconds: waiting.map(round),
        running_seconds: running.map(round),
        waiting_commands,
        workers,
        seconds_per_request: round(seconds_per_request),
        measured_jobs: if measured.is_some() { inputs.durations.len() } else { 0 },
    }
}

/// How fast requests are sent and answered.
struct Throughput {
    /// The quota of all workers together.
    requests_a_second: f64,
    seconds_per_request: f64,
}

impl Throughput {
    /// Seconds that this many requests take, with so many at once in each of `workers`.
    #[expect(clippy::cast_precision_loss, reason = "the concurrency is below 100")]
    fn seconds(&self, requests: f64, concurrency: usize, workers: u32) -> f64 {
        let rounds = (requests / (concurrency as f64 * f64::from(workers))).ceil();
        // The first request need not wait for the quota.
        let by_quota = (requests - 1.0).max(0.0) / self.requests_a_second;
        (rounds * self.seconds_per_request).max(by_quota)
    }
}

/// What a request of a job took, if the job had so many at once.
#[expect(clippy::cast_precision_loss, reason = "a job has at most a few thousand requests")]
fn seconds_per_request(job: &JobDuration, concurrency: NonZeroUsize) -> Option<f64> {
    let seconds = (job.finished_at - job.created_at).as_seconds_f64();
    let rounds = (job.requests as f64 / concurrency.get() as f64).ceil();
    (rounds > 0.0 && seconds >= 0.0).then(|| seconds / rounds)
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[expect(clippy::cast_precision_loss, reason = "a job has at most a few thousand requests")]
fn mean_requests(jobs: &[JobDuration]) -> Option<f64> {
    let requests: i64 = jobs.iter().map(|job| job.requests).sum();
    (!jobs.is_empty()).then(|| requests as f64 / jobs.len() as f64)
}

#[cfg(test)]
mod tests {
    use broker::QueueState;
    use domain::command::JobConfig;
    use store::Pause;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::gate::GateReason;

    fn command(max_concurrent: Option<u8>) -> Command {
        let config = JobConfig { max_concurrent, ..JobConfig::default() };
        Command { job_id: Uuid::nil(), project_id: 1, image_descriptions: vec!["A fox".to_owned(); 10], config }
    }

    /// A job that took this many seconds for its requests.
    fn job(requests: i64, seconds: i64) -> JobDuration {
        let created_at = OffsetDateTime::UNIX_EPOCH;
        JobDuration { requests, created_at, finished_at: created_at + time::Duration::seconds(seconds) }
    }

    fn settings(rate: &str) -> Settings {
        let value = |name: &str| (name == "STABILITY_RATE_LIMIT").then(|| rate.to_owned());
        Settings::from_source(value).expect("the settings are valid")
    }

    #[track_caller]
    fn check_running(rate: &str, max_concurrent: Option<u8>, upscaler: Upscaler, images: u32, expected: f64) {
        let known = Inputs::unknown();
        let duration = estimate(&settings(rate), &known, &command(max_concurrent), Some(images), upscaler);
        assert_eq!((duration.running_seconds, duration.total_seconds), (Some(expected), None));
        assert_eq!((duration.measured_jobs, duration.workers), (0, None));
    }

    #[test]
    fn job_takes_as_long_as_concurrency_or_quota_allow() {
        // Four at once, 8 seconds each.
        check_running("6000", None, Upscaler::Lanczos, 10, 24.0);
        check_running("6000", Some(1), Upscaler::Lanczos, 10, 80.0);
        check_running("6000", None, Upscaler::Fast, 10, 40.0);
        check_running("6000", None, Upscaler::Lanczos, 0, 0.0);
        // Six requests a minute: 9 intervals of 10 seconds.
        check_running("6", None, Upscaler::Lanczos, 10, 90.0);
    }

    #[test]
    fn command_waits_for_those_before_it() {
        let mut known = Inputs::unknown();
        // Three rounds of 2, 4 and 6 seconds: the median counts.
        known.durations = vec![job(10, 6), job(10, 18), job(10, 12)];
        let waiting = |known: &Inputs| {
            let duration = estimate(&settings("60000"), known, &command(None), Some(10), Upscaler::Lanczos);
            assert_eq!((duration.seconds_per_request, duration.measured_jobs), (4.0, 3));
            (duration.waiting_seconds, duration.total_seconds)
        };
        assert_eq!(waiting(&known), (None, None), "without a broker");
        known.queue = Some(QueueState::Missing);
        assert_eq!(waiting(&known), (None, None), "without a worker");
        known.queue = Some(QueueState::Present { messages: 0, consumers: 1 });
        assert_eq!(waiting(&known), (Some(0.0), Some(12.0)));
        // 60 requests, 4 at once in each of 3 workers.
        known.queue = Some(QueueState::Present { messages: 6, consumers: 3 });
        assert_eq!(waiting(&known), (Some(20.0), Some(32.0)));
        known.gate = Some(vec![GateReason::Paused(Pause { since: OffsetDateTime::UNIX_EPOCH, reason: None })]);
        assert_eq!(waiting(&known), (None, None), "while the gate is closed");
    }
}
