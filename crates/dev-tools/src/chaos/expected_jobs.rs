//! What is asked for, and what must come of it.

use fastrand::Rng;
use serde_json::{Value, json};

use super::Plan;

/// What a description orders of the sandbox.
#[derive(Debug, Clone, Copy)]
struct ExpectedFault {
    directive: &'static str,
    /// Requests that it costs besides the one that every picture needs.
    extra_requests: u32,
    /// The image's failure code, where it cannot be had.
    failure_code: Option<&'static str>,
    /// It ends the job's try: every request would meet it.
    fatal: bool,
}

const fn transient_fault(word: &'static str, repeats: u32) -> ExpectedFault {
    ExpectedFault { directive: word, extra_requests: repeats, failure_code: None, fatal: false }
}

/// A worker waits this long for an answer; a request that takes longer is lost.
pub(super) const API_TIMEOUT: &str = "8s";

/// The sandbox's whole list.
const FAULTS: [ExpectedFault; 23] = [
    transient_fault("status=500 x1", 1),
    transient_fault("status=502 x1", 1),
    transient_fault("status=503 x2", 2),
    transient_fault("status=429 x1", 1),
    transient_fault("status=429:1 x1", 1),
    transient_fault("error x1", 1),
    transient_fault("corrupt x1", 1),
    // Scaled like any other.
    transient_fault("wrong-size x1", 0),
    // Sharpness is not looked at unless a threshold is set.
    transient_fault("blurred x1", 0),
    transient_fault("blank x1", 1),
    transient_fault("bomb x1", 1),
    transient_fault("oversized x1", 1),
    transient_fault("truncated x1", 1),
    transient_fault("html x1", 1),
    transient_fault("empty x1", 1),
    transient_fault("drop x1", 1),
    transient_fault("slow=1500", 0),
    // Longer than the grace of a worker that is told to stop: where it is only cut off, that costs nothing.
    transient_fault("slow=6000", 0),
    transient_fault("slow=12000 x1", 1),
    ExpectedFault { directive: "filtered", extra_requests: 0, failure_code: Some("content_policy"), fatal: false },
    ExpectedFault { directive: "status=400", extra_requests: 0, failure_code: Some("rejected_request"), fatal: false },
    ExpectedFault { directive: "status=401 x1", extra_requests: 1, failure_code: None, fatal: true },
    ExpectedFault { directive: "status=402 x1", extra_requests: 1, failure_code: None, fatal: true },
];

/// One image of a job, as it is expected.
#[derive(Debug)]
pub(super) struct ExpectedImage {
    /// Stands in the prompt of this image, and of no other.
    pub(super) marker: String,
    fault: Option<ExpectedFault>,
}

impl ExpectedImage {
    /// The most requests that it explains, where no worker is lost.
    pub(super) fn max_requests(&self) -> u32 {
        1 + self.fault.map_or(0, |fault| fault.extra_requests)
    }

    /// Its failure code, where it cannot be had.
    pub(super) fn failure_code(&self) -> Option<&'static str> {
        self.fault.and_then(|fault| fault.failure_code)
    }
}

/// A command, and what must come of it.
#[derive(Debug)]
pub(super) struct ExpectedJob {
    pub(super) job_id: String,
    pub(super) body: Value,
    /// None where the command is refused.
    pub(super) images: Vec<ExpectedImage>,
}

impl ExpectedJob {
    pub(super) fn is_refused(&self) -> bool {
        self.images.is_empty()
    }

    /// Whether enough of its images can be had.
    pub(super) fn should_complete(&self) -> bool {
        let good = self.images.iter().filter(|image| image.failure_code().is_none()).count();
        !self.is_refused() && good * 5 >= self.images.len() * 4
    }

    /// The codes that its end may have, where it fails.
    pub(super) fn allowed_failure_codes(&self) -> Vec<&'static str> {
        let fatal = self.images.iter().any(|image| image.fault.is_some_and(|fault| fault.fatal));
        match self.is_refused() {
            true => vec!["invalid_request"],
            false if fatal => vec!["success_rate_too_low", "unauthorized", "insufficient_credits"],
            false => vec!["success_rate_too_low"],
        }
    }
}

/// One command in so many is refused.
const REFUSED_ONE_IN: usize = 25;
/// Projects that the jobs belong to.
pub(super) const PROJECT_COUNT: usize = 5;

/// The orders of a run.
pub(super) fn generate(dice: &mut Rng, plan: &Plan) -> Vec<ExpectedJob> {
    (0..plan.jobs).map(|number| generate_job(dice, plan, number)).collect()
}

fn generate_job(dice: &mut Rng, plan: &Plan, number: usize) -> ExpectedJob {
    let job_id = uuid::Builder::from_random_bytes(dice.u128(..).to_be_bytes()).into_uuid().to_string();
    let project_id = 1 + number % PROJECT_COUNT;
    if dice.usize(..REFUSED_ONE_IN) == 0 {
        let config = json!({"steps": 5});
        let body =
            json!({"job_id": job_id, "project_id": project_id, "image_descriptions": ["A fox"], "config": config});
        return ExpectedJob { job_id, body, images: Vec::new() };
    }
    let images: Vec<ExpectedImage> = (1..=dice.usize(1..=plan.max_images))
        .map(|index| {
            let fault = if dice.usize(..5) < 2 { dice.choice(FAULTS) } else { None };
            ExpectedImage { marker: format!("Harbour {number:03}-{index:02}"), fault }
        })
        .collect();
    let description = |image: &ExpectedImage| match image.fault {
        Some(fault) => format!("{} [fault:{}]", image.marker, fault.directive),
        None => image.marker.clone(),
    };
    let descriptions: Vec<String> = images.iter().map(description).collect();
    let config = json!({"max_concurrent": dice.u32(1..=4), "cache": "never"});
    let body =
        json!({"job_id": job_id, "project_id": project_id, "image_descriptions": descriptions, "config": config});
    ExpectedJob { job_id, body, images }
}

/// Another command with the id of this one.
pub(super) fn conflicting_command(order: &ExpectedJob) -> Value {
    let mut body = order.body.clone();
    body["image_descriptions"] = json!(["Something else"]);
    body["config"] = json!({});
    body
}
