//! Verification from the outside: messages, rows, files and the sandbox's ledger. All checks run, also after a
//! violation.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use integration_tests::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cluster::{Cluster, EVENT_QUEUE, paid_requests};
use super::expected_jobs::{ExpectedJob, PROJECT_COUNT};
use super::report::Report;

/// Runs all checks and adds the violations to the report.
pub(super) async fn verify(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let producer = cluster.env.connect_broker().await?;
    for (queue, messages) in cluster.non_empty_queues(&producer).await? {
        report.add_violation(format!("{messages} messages are waiting on {queue}"));
    }
    let events = collect_terminal_events(cluster, producer.drain_queue(EVENT_QUEUE).await?, report);
    let rows = DatabaseRows::load(cluster).await?;
    for (number, order) in cluster.jobs.iter().enumerate() {
        match events.get(&order.job_id).map(Vec::as_slice) {
            None | Some([]) => report.add_violation(format!("job {number} has no terminal event")),
            Some([event]) => verify_job(number, order, event, &rows, report)?,
            Some(several) => {
                report.add_violation(format!("job {number} has {} different terminal events", several.len()));
            }
        }
    }
    verify_files(cluster, &rows, report)?;
    verify_requests(cluster, &rows, report);
    for (job_id, paid) in &cluster.cancelled {
        let finally = &cluster.env.query_rows(&paid_requests(job_id)).await?[0]["paid"];
        if finally != paid {
            report.add_violation(format!(
                "{finally} requests were paid for job {job_id}, {paid} before it was cancelled"
            ));
        }
    }
    verify_dead_letters(cluster, &producer.drain_queue("assets.generate.dead").await?, report);
    Ok(())
}

/// Distinct terminal events of each job.
fn collect_terminal_events(
    cluster: &Cluster,
    messages: Vec<Message>,
    report: &mut Report,
) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut events: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for message in messages {
        let event = message.json();
        if !matches!(message.event_type().as_str(), "assets.generation.completed" | "assets.generation.failed") {
            continue;
        }
        report.terminal_events += 1;
        let Some(order) = cluster.find_job(&event["data"]["job_id"]) else {
            report.add_violation(format!("terminal event of an unknown job: {}", event["subject"]));
            continue;
        };
        let bodies = events.entry(order.job_id.clone()).or_default();
        if !bodies.contains(&message.body) {
            bodies.push(message.body);
        }
    }
    events
}

/// Rows of the database at the end of the run.
struct DatabaseRows {
    jobs: BTreeMap<String, Value>,
    assets: BTreeMap<String, Vec<Value>>,
}

impl DatabaseRows {
    async fn load(cluster: &Cluster) -> Result<Self> {
        let id = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let jobs =
            cluster.env.query_rows("SELECT id, status, terminal_event, published_at, cancelled_at FROM jobs").await?;
        let sql =
            "SELECT job_id, \"index\", status, file_path, sha256, size_bytes, requests FROM assets ORDER BY \"index\"";
        let mut assets: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for row in cluster.env.query_rows(sql).await? {
            assets.entry(id(&row, "job_id")).or_default().push(row);
        }
        Ok(Self { jobs: jobs.into_iter().map(|row| (id(&row, "id"), row)).collect(), assets })
    }

    fn completed_assets(&self) -> impl Iterator<Item = &Value> {
        self.assets.values().flatten().filter(|row| row["status"] == "completed")
    }
}

/// Checks that event, rows and expected job agree.
fn verify_job(number: usize, order: &ExpectedJob, body: &[u8], rows: &DatabaseRows, report: &mut Report) -> Result<()> {
    let event: Value = serde_json::from_slice(body)?;
    let data = &event["data"];
    let mut violated = |what: String| report.add_violation(format!("job {number}: {what}"));
    let code = data["error"]["code"].as_str().unwrap_or_default();
    let count = rows.jobs.get(&order.job_id).with_context(|| format!("job {number} has no row"))?;
    // What was recorded first counts: a cancellation, or the end of the job.
    let cancelled = !count["cancelled_at"].is_null() && !order.is_refused();
    let expired = !cancelled && order.expires_in.is_some() && code == "expired";
    let (ended, expected_code) = match () {
        () if cancelled => ("failed", "cancelled"),
        () if expired => ("failed", "expired"),
        () if order.should_complete() => ("completed", ""),
        () => ("failed", order.failure_code()),
    };
    if event["type"] != format!("assets.generation.{ended}") {
        violated(format!("expected {ended}, but the event is {}, {}", event["type"], data["error"]));
    }
    if code != expected_code {
        violated(format!("ended with the unexpected code {code:?}"));
    }
    if data["retry_of"].is_string() != order.is_retry {
        violated(format!("retry_of is {}", data["retry_of"]));
    }
    if count["status"] != ended {
        violated(format!("its row has the status {}", count["status"]));
    }
    if count["published_at"].is_null() {
        violated("its row does not say that the terminal event was published".to_owned());
    }
    if count["terminal_event"].as_str().map(str::as_bytes) != Some(body) {
        violated("the terminal event in its row differs from the published one".to_owned());
    }
    let assets = rows.assets.get(&order.job_id).map(Vec::as_slice).unwrap_or_default();
    if assets.len() != order.images.len() {
        violated(format!("{} rows for {} images", assets.len(), order.images.len()));
    }
    for (image, row) in order.images.iter().zip(assets) {
        let index = &row["index"];
        let listed = |list: &str| {
            let list = data[list].as_array().map(Vec::as_slice).unwrap_or_default();
            list.iter().filter(|entry| entry["index"] == *index).cloned().collect::<Vec<_>>()
        };
        match (row["status"].as_str(), &listed("assets")[..], &listed("failures")[..]) {
            (Some("completed"), [asset], []) => {
                for key in ["file_path", "sha256", "size_bytes"] {
                    if asset[key] != row[key] {
                        violated(format!(
                            "image {index}: {key} is {} in the event, {} in the row",
                            asset[key], row[key]
                        ));
                    }
                }
                if image.failure_code().is_some() {
                    violated(format!("image {index} completed, but was expected to fail"));
                }
            }
            (Some("failed"), [], [failure]) => {
                let failed = failure["code"].as_str();
                // If too few images can succeed, or the job expires, the remaining ones are not attempted. Of a stopped
                // job an image may also have failed for now.
                let may_be_untried = !order.should_complete() || order.expires_in.is_some();
                let untried = failed == Some("not_attempted") && may_be_untried;
                if failed != image.failure_code() && !untried && !cancelled && !expired {
                    violated(format!("image {index} failed unexpectedly: {failure}"));
                }
            }
            (status, assets, failures) => violated(format!(
                "image {index} is {status:?} in its row, and is listed {} times in the assets and {} times in the failures",
                assets.len(),
                failures.len()
            )),
        }
    }
    let count = if ended == "completed" { &mut report.completed } else { &mut report.failed };
    *count += 1;
    report.cancelled += usize::from(cancelled);
    report.expired += usize::from(expired);
    report.retries += usize::from(order.is_retry);
    Ok(())
}

/// Checks that each file is complete, measures 1920x1080 and belongs to one row, and that there are no other files.
fn verify_files(cluster: &Cluster, rows: &DatabaseRows, report: &mut Report) -> Result<()> {
    let mut known = BTreeSet::new();
    for row in rows.completed_assets() {
        let path = row["file_path"].as_str().context("file_path is not a string")?;
        if !known.insert(path.to_owned()) {
            report.add_violation(format!("{path} belongs to two rows"));
        }
        match std::fs::read(cluster.env.stored_path(path)) {
            Err(error) => report.add_violation(format!("{path}: {error}")),
            Ok(bytes) => {
                let sha256 = format!("{:x}", bytes::Bytes::copy_from_slice(&Sha256::digest(&bytes)));
                if row["sha256"] != sha256.as_str() {
                    report.add_violation(format!("{path} does not have the hash that its row says"));
                }
                match image::load_from_memory(&bytes) {
                    Ok(picture) if (picture.width(), picture.height()) == (1920, 1080) => {}
                    Ok(picture) => {
                        report.add_violation(format!("{path} measures {}x{}", picture.width(), picture.height()));
                    }
                    Err(error) => report.add_violation(format!("{path}: {error}")),
                }
            }
        }
    }
    report.files = known.len();
    for project in 1..=PROJECT_COUNT {
        let folder = format!("projects/{project}/assets");
        // A project without a completed image has no folder.
        for file in std::fs::read_dir(cluster.env.stored_path(&folder)).into_iter().flatten() {
            let path = format!("{folder}/{}", file?.file_name().display());
            if !known.contains(&path) {
                report.add_violation(format!("{path} belongs to no row"));
            }
        }
    }
    Ok(())
}

/// Requests for an image that are allowed and recorded, in its job and in the jobs that make it again.
#[derive(Default)]
struct AllowedRequests {
    requests: u32,
    upscale_requests: u32,
    caused_by_faults: u32,
    recorded: u64,
}

/// Checks that no image was requested more often than its faults and the interruptions of its workers allow.
fn verify_requests(cluster: &Cluster, rows: &DatabaseRows, report: &mut Report) {
    let ledger = cluster.env.sandbox.ledger();
    report.requests = ledger.requests;
    let mut known_requests = 0;
    let mut by_image: BTreeMap<&str, AllowedRequests> = BTreeMap::new();
    for (number, order) in cluster.jobs.iter().enumerate() {
        let assets = rows.assets.get(&order.job_id).map(Vec::as_slice).unwrap_or_default();
        for ((index, image), row) in (1..).zip(&order.images).zip(assets) {
            let interruptions = cluster.interruptions.get(&(number, index)).copied().unwrap_or_default();
            let allowed = by_image.entry(&image.marker).or_default();
            allowed.requests += image.max_requests() + interruptions;
            allowed.upscale_requests += image.max_upscale_requests;
            allowed.caused_by_faults += image.max_requests() - 1;
            allowed.recorded += row["requests"].as_u64().unwrap_or_default();
        }
    }
    let unknown_prompts: Vec<&String> =
        ledger.by_prompt.keys().filter(|prompt| !by_image.keys().any(|image| prompt.contains(image))).collect();
    for (image, allowed) in by_image {
        let asked = ledger.prompt_counts(image);
        known_requests += asked.requests + asked.upscale_requests;
        report.upscaled += asked.upscaled;
        report.expected_retries += allowed.caused_by_faults.min(asked.requests.saturating_sub(1));
        report.repeats_after_interruptions += asked.requests.saturating_sub(1 + allowed.caused_by_faults);
        if asked.requests > allowed.requests {
            report.add_violation(format!(
                "{image} was requested {} times, and {} were allowed",
                asked.requests, allowed.requests
            ));
        }
        if asked.upscale_requests > allowed.upscale_requests {
            report.add_violation(format!(
                "{image} was to be upscaled {} times, and {} were allowed",
                asked.upscale_requests, allowed.upscale_requests
            ));
        }
        // Each request must have been recorded in the row before it was sent.
        if u64::from(asked.requests + asked.upscale_requests) > allowed.recorded {
            report.add_violation(format!(
                "{image} was requested {} times, and its rows say {}",
                asked.requests, allowed.recorded
            ));
        }
    }
    // The sandbox rejects a key before it reads the prompt, and of a killed worker it may receive only a part of an
    // image.
    let rejected = ledger.by_status.get(&401).copied().unwrap_or_default();
    report.rejected_keys = rejected;
    let unreadable = rejected + ledger.incomplete;
    if known_requests + unreadable != ledger.requests {
        let unknown = ledger.requests - known_requests - unreadable;
        report.add_violation(format!(
            "{unknown} requests belong to no image of a job; responses by status: {:?}; prompts of no job: {unknown_prompts:?}",
            ledger.by_status
        ));
    }
}

/// Checks that the dead letters are exactly the expected messages, each with its reason.
fn verify_dead_letters(cluster: &Cluster, letters: &[Message], report: &mut Report) {
    report.dead_letters = letters.len();
    let reason = |letter: &Message| letter.header("x-rejected-reason").unwrap_or_default();
    for letter in letters {
        let known = cluster
            .expected_dead_letters
            .iter()
            .any(|(body, why)| *body == letter.body && reason(letter).starts_with(why));
        // Before RabbitMQ 4.3, a command that cannot be published again while the broker blocks publishing may exceed
        // the delivery limit. Its job goes on, which the other checks show; a copy remains.
        let command: Option<Value> = serde_json::from_slice(&letter.body).ok();
        let is_job = cluster.jobs.iter().any(|job| Some(&job.body) == command.as_ref());
        if !known && reason(letter).is_empty() && is_job {
            report.given_up += 1;
        } else if !known {
            let body = String::from_utf8_lossy(&letter.body).into_owned();
            report.add_violation(format!("unexpected dead letter with the reason {:?}: {body}", reason(letter)));
        }
    }
    for (body, why) in &cluster.expected_dead_letters {
        if !letters.iter().any(|letter| letter.body == *body) {
            let body = String::from_utf8_lossy(body);
            report.add_violation(format!("no dead letter for a message with the expected reason {why}: {body}"));
        }
    }
}
