//! The jobs of a run and their expected results.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Plan;

/// A fault that a directive in a description injects into the sandbox.
#[derive(Debug, Clone, Copy)]
struct ExpectedFault {
    directive: &'static str,
    /// Requests that it causes in addition to the one that every image needs.
    extra_requests: u32,
    /// Failure code of the image, if it cannot succeed.
    failure_code: Option<&'static str>,
}

const fn transient_fault(word: &'static str, repeats: u32) -> ExpectedFault {
    ExpectedFault { directive: word, extra_requests: repeats, failure_code: None }
}

/// Time that a worker waits for a response; a request that takes longer fails.
pub(super) const API_TIMEOUT: &str = "8s";

/// All faults of the sandbox, except those that close the account gate.
const FAULTS: [ExpectedFault; 21] = [
    transient_fault("status=500 x1", 1),
    transient_fault("status=502 x1", 1),
    transient_fault("status=503 x2", 2),
    transient_fault("status=429 x1", 1),
    transient_fault("status=429:1 x1", 1),
    transient_fault("error x1", 1),
    transient_fault("corrupt x1", 1),
    // Scaled like an image of the right size.
    transient_fault("wrong-size x1", 0),
    // Sharpness is not checked unless a threshold is set.
    transient_fault("blurred x1", 0),
    transient_fault("blank x1", 1),
    transient_fault("bomb x1", 1),
    transient_fault("truncated x1", 1),
    transient_fault("html x1", 1),
    transient_fault("empty x1", 1),
    transient_fault("drop x1", 1),
    transient_fault("slow=1500", 0),
    // Longer than the grace period, so that a shutdown drops the request. Otherwise it succeeds and causes no further
    // request.
    transient_fault("slow=6000", 0),
    transient_fault("slow=12000 x1", 1),
    ExpectedFault { directive: "filtered", extra_requests: 0, failure_code: Some("content_policy") },
    // A repeated request would be paid for and return a body of the same length.
    ExpectedFault { directive: "oversized", extra_requests: 0, failure_code: Some("invalid_image") },
    ExpectedFault { directive: "status=400", extra_requests: 0, failure_code: Some("rejected_request") },
];

/// Faults of the upscaler, with the number of its requests. None of them fails the image.
const UPSCALE_FAULTS: [(&str, u32); 5] =
    [("status=500 x1", 2), ("drop x2", 3), ("status=400", 1), ("blank", 1), ("wrong-size", 1)];
/// One in this many jobs uses the fast upscaler.
const UPSCALED_ONE_IN: usize = 6;

/// One in this many jobs expires, within [`MAX_EXPIRY`] after its command is published.
const EXPIRING_ONE_IN: usize = 10;
const MAX_EXPIRY: Duration = Duration::from_secs(8);

/// An image of a job and its expected result.
#[derive(Debug, Clone)]
pub(super) struct ExpectedImage {
    /// Text that only the prompt of this image contains.
    pub(super) marker: String,
    fault: Option<ExpectedFault>,
    /// Maximum number of requests to the upscaler, however often a worker is interrupted: the image is stored before.
    pub(super) max_upscale_requests: u32,
}

impl ExpectedImage {
    /// Maximum number of requests if no worker is interrupted.
    pub(super) fn max_requests(&self) -> u32 {
        1 + self.fault.map_or(0, |fault| fault.extra_requests)
    }

    /// Failure code, if the image cannot succeed.
    pub(super) fn failure_code(&self) -> Option<&'static str> {
        self.fault.and_then(|fault| fault.failure_code)
    }
}

/// A command and its expected result.
#[derive(Debug)]
pub(super) struct ExpectedJob {
    pub(super) job_id: String,
    pub(super) body: Value,
    /// Empty if the command is invalid.
    pub(super) images: Vec<ExpectedImage>,
    /// Time from publishing until `config.expires_at`, which is set when the command is published.
    pub(super) expires_in: Option<Duration>,
    /// Whether it makes images of another job again.
    pub(super) is_retry: bool,
}

impl ExpectedJob {
    pub(super) fn is_refused(&self) -> bool {
        self.images.is_empty()
    }

    /// Whether enough images can succeed: 80%.
    pub(super) fn should_complete(&self) -> bool {
        let good = self.images.iter().filter(|image| image.failure_code().is_none()).count();
        !self.is_refused() && good * 5 >= self.images.len() * 4
    }

    /// The command, which expires from now on if it is to expire.
    pub(super) fn set_expiry(&mut self) {
        if let Some(expires_in) = self.expires_in {
            let expires_at = OffsetDateTime::now_utc() + expires_in;
            self.body["config"]["expires_at"] = json!(expires_at.format(&Rfc3339).expect("a time of this century"));
        }
    }

    /// The job that makes images of this one again, with their indexes in this job.
    pub(super) fn retry(&self, job_id: &str, indexes: &[usize], body: Value) -> Self {
        let images = indexes.iter().filter_map(|index| self.images.get(index - 1)).cloned().collect();
        Self { job_id: job_id.to_owned(), body, images, expires_in: None, is_retry: true }
    }

    /// The failure code of the job, if it fails.
    pub(super) fn failure_code(&self) -> &'static str {
        if self.is_refused() { "invalid_request" } else { "success_rate_too_low" }
    }
}

/// One in this many commands is invalid.
const REFUSED_ONE_IN: usize = 25;
/// Number of projects that the jobs belong to.
pub(super) const PROJECT_COUNT: usize = 5;

/// Generates the jobs of a run.
pub(super) fn generate(rng: &mut Rng, plan: &Plan) -> Vec<ExpectedJob> {
    (0..plan.jobs).map(|number| generate_job(rng, plan, number)).collect()
}

fn generate_job(rng: &mut Rng, plan: &Plan, number: usize) -> ExpectedJob {
    let job_id = uuid::Builder::from_random_bytes(rng.u128(..).to_be_bytes()).into_uuid().to_string();
    let project_id = 1 + number % PROJECT_COUNT;
    if rng.usize(..REFUSED_ONE_IN) == 0 {
        let config = json!({"steps": 5});
        let body =
            json!({"job_id": job_id, "project_id": project_id, "image_descriptions": ["A fox"], "config": config});
        return ExpectedJob { job_id, body, images: Vec::new(), expires_in: None, is_retry: false };
    }
    let is_upscaled = rng.usize(..UPSCALED_ONE_IN) == 0;
    let (images, descriptions): (Vec<ExpectedImage>, Vec<String>) = (1..=rng.usize(1..=plan.max_images))
        .map(|index| {
            let marker = format!("Harbour {number:03}-{index:02}");
            let fault = if rng.usize(..5) < 2 { rng.choice(FAULTS) } else { None };
            let mut description = marker.clone();
            if let Some(fault) = fault {
                description += &format!(" [fault:{}]", fault.directive);
            }
            let mut max_upscale_requests = u32::from(is_upscaled);
            if is_upscaled && let Some((directive, requests)) = rng.choice(UPSCALE_FAULTS) {
                description += &format!(" [upscale-fault:{directive}]");
                max_upscale_requests = requests;
            }
            (ExpectedImage { marker, fault, max_upscale_requests }, description)
        })
        .unzip();
    let mut config = json!({"max_concurrent": rng.u32(1..=4), "cache": "never"});
    if is_upscaled {
        config["upscaler"] = json!("fast");
    }
    let expires_in = (rng.usize(..EXPIRING_ONE_IN) == 0).then(|| MAX_EXPIRY.mul_f64(rng.f64()));
    let body =
        json!({"job_id": job_id, "project_id": project_id, "image_descriptions": descriptions, "config": config});
    ExpectedJob { job_id, body, images, expires_in, is_retry: false }
}

/// Returns a different command with the same id.
pub(super) fn conflicting_command(order: &ExpectedJob) -> Value {
    let mut body = order.body.clone();
    body["image_descriptions"] = json!(["Something else"]);
    body["config"] = json!({});
    body
}
