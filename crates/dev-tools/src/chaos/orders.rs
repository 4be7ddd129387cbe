//! What is asked for, and what must come of it.

use fastrand::Rng;
use serde_json::{Value, json};

use super::Plan;

/// What a description orders of the sandbox.
#[derive(Debug, Clone, Copy)]
struct Fault {
    word: &'static str,
    /// Requests that it costs besides the one that every picture needs.
    repeats: u32,
    /// The image's failure code, where it cannot be had.
    code: Option<&'static str>,
    /// It ends the job's try: every request would meet it.
    fatal: bool,
}

const fn passing(word: &'static str, repeats: u32) -> Fault {
    Fault { word, repeats, code: None, fatal: false }
}

/// A worker waits this long for an answer; a request that takes longer is lost.
pub(super) const TIMEOUT: &str = "8s";

/// The sandbox's whole list.
const FAULTS: [Fault; 23] = [
    passing("status=500 x1", 1),
    passing("status=502 x1", 1),
    passing("status=503 x2", 2),
    passing("status=429 x1", 1),
    passing("status=429:1 x1", 1),
    passing("error x1", 1),
    passing("corrupt x1", 1),
    // Scaled like any other.
    passing("wrong-size x1", 0),
    // Sharpness is not looked at unless a threshold is set.
    passing("blurred x1", 0),
    passing("blank x1", 1),
    passing("bomb x1", 1),
    passing("oversized x1", 1),
    passing("truncated x1", 1),
    passing("html x1", 1),
    passing("empty x1", 1),
    passing("drop x1", 1),
    passing("slow=1500", 0),
    // Longer than the grace of a worker that is told to stop: where it is only cut off, that costs nothing.
    passing("slow=6000", 0),
    passing("slow=12000 x1", 1),
    Fault { word: "filtered", repeats: 0, code: Some("content_policy"), fatal: false },
    Fault { word: "status=400", repeats: 0, code: Some("rejected_request"), fatal: false },
    Fault { word: "status=401 x1", repeats: 1, code: None, fatal: true },
    Fault { word: "status=402 x1", repeats: 1, code: None, fatal: true },
];

/// One image of a job, as it is expected.
#[derive(Debug)]
pub(super) struct Image {
    /// Stands in the prompt of this image, and of no other.
    pub(super) mark: String,
    fault: Option<Fault>,
}

impl Image {
    /// The most requests that it explains, where no worker is lost.
    pub(super) fn requests(&self) -> u32 {
        1 + self.fault.map_or(0, |fault| fault.repeats)
    }

    /// Its failure code, where it cannot be had.
    pub(super) fn code(&self) -> Option<&'static str> {
        self.fault.and_then(|fault| fault.code)
    }
}

/// A command, and what must come of it.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) job_id: String,
    pub(super) body: Value,
    /// None where the command is refused.
    pub(super) images: Vec<Image>,
}

impl Order {
    pub(super) fn is_refused(&self) -> bool {
        self.images.is_empty()
    }

    /// Whether enough of its images can be had.
    pub(super) fn completes(&self) -> bool {
        let good = self.images.iter().filter(|image| image.code().is_none()).count();
        !self.is_refused() && good * 5 >= self.images.len() * 4
    }

    /// The codes that its end may have, where it fails.
    pub(super) fn end_codes(&self) -> Vec<&'static str> {
        let fatal = self.images.iter().any(|image| image.fault.is_some_and(|fault| fault.fatal));
        match self.is_refused() {
            true => vec!["invalid_request"],
            false if fatal => vec!["success_rate_too_low", "unauthorized", "insufficient_credits"],
            false => vec!["success_rate_too_low"],
        }
    }
}

/// One command in so many is refused.
const REFUSED: usize = 25;
/// Projects that the jobs belong to.
pub(super) const PROJECTS: usize = 5;

/// The orders of a run.
pub(super) fn drawn(dice: &mut Rng, plan: &Plan) -> Vec<Order> {
    (0..plan.jobs).map(|number| order(dice, plan, number)).collect()
}

fn order(dice: &mut Rng, plan: &Plan, number: usize) -> Order {
    let job_id = uuid::Builder::from_random_bytes(dice.u128(..).to_be_bytes()).into_uuid().to_string();
    let project_id = 1 + number % PROJECTS;
    if dice.usize(..REFUSED) == 0 {
        let config = json!({"steps": 5});
        let body =
            json!({"job_id": job_id, "project_id": project_id, "image_descriptions": ["A fox"], "config": config});
        return Order { job_id, body, images: Vec::new() };
    }
    let images: Vec<Image> = (1..=dice.usize(1..=plan.images))
        .map(|index| {
            let fault = if dice.usize(..5) < 2 { dice.choice(FAULTS) } else { None };
            Image { mark: format!("Harbour {number:03}-{index:02}"), fault }
        })
        .collect();
    let description = |image: &Image| match image.fault {
        Some(fault) => format!("{} [fault:{}]", image.mark, fault.word),
        None => image.mark.clone(),
    };
    let descriptions: Vec<String> = images.iter().map(description).collect();
    let config = json!({"max_concurrent": dice.u32(1..=4), "cache": "never"});
    let body =
        json!({"job_id": job_id, "project_id": project_id, "image_descriptions": descriptions, "config": config});
    Order { job_id, body, images }
}

/// Another command with the id of this one.
pub(super) fn conflicting(order: &Order) -> Value {
    let mut body = order.body.clone();
    body["image_descriptions"] = json!(["Something else"]);
    body["config"] = json!({});
    body
}
