//! What came of it, seen from the outside: messages, rows, files, the sandbox's ledger. Every promise is looked at, also after one was found broken.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use integration_tests::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::orders::{Order, PROJECTS};
use super::report::Report;
use super::stage::{EVENTS, Stage};

/// Looks at everything, and notes in the report what is not as it must be.
pub(super) async fn look(stage: &Stage, report: &mut Report) -> Result<()> {
    let producer = stage.world.producer().await?;
    for (queue, messages) in stage.waiting(&producer).await? {
        report.violated(format!("{messages} messages lie on {queue}"));
    }
    let events = terminal_events(stage, producer.take_all(EVENTS).await?, report);
    let rows = Rows::read(stage).await?;
    for (number, order) in stage.orders.iter().enumerate() {
        match events.get(&order.job_id).map(Vec::as_slice) {
            None | Some([]) => report.violated(format!("job {number} has no terminal event")),
            Some([event]) => look_at_job(number, order, event, &rows, report)?,
            Some(several) => report.violated(format!("job {number} has {} different terminal events", several.len())),
        }
    }
    look_at_files(stage, &rows, report)?;
    look_at_requests(stage, &rows, report);
    look_at_dead_letters(stage, &producer.take_all("assets.generate.dead").await?, report);
    Ok(())
}

/// The different terminal events of each job.
fn terminal_events(stage: &Stage, messages: Vec<Message>, report: &mut Report) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut events: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for message in messages {
        let event = message.json();
        if !matches!(message.kind().as_str(), "assets.generation.completed" | "assets.generation.failed") {
            continue;
        }
        report.terminal_events += 1;
        let Some(order) = stage.order(&event["data"]["job_id"]) else {
            report.violated(format!("a terminal event of no job: {}", event["subject"]));
            continue;
        };
        let bodies = events.entry(order.job_id.clone()).or_default();
        if !bodies.contains(&message.body) {
            bodies.push(message.body);
        }
    }
    events
}

/// The database, as it is in the end.
struct Rows {
    jobs: BTreeMap<String, Value>,
    assets: BTreeMap<String, Vec<Value>>,
}

impl Rows {
    async fn read(stage: &Stage) -> Result<Self> {
        let id = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let jobs = stage.world.rows("SELECT id, status, terminal_event, published_at FROM jobs").await?;
        let sql =
            "SELECT job_id, \"index\", status, file_path, sha256, size_bytes, requests FROM assets ORDER BY \"index\"";
        let mut assets: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for row in stage.world.rows(sql).await? {
            assets.entry(id(&row, "job_id")).or_default().push(row);
        }
        Ok(Self { jobs: jobs.into_iter().map(|row| (id(&row, "id"), row)).collect(), assets })
    }

    fn completed(&self) -> impl Iterator<Item = &Value> {
        self.assets.values().flatten().filter(|row| row["status"] == "completed")
    }
}

/// Event, rows and what was ordered agree.
fn look_at_job(number: usize, order: &Order, body: &[u8], rows: &Rows, report: &mut Report) -> Result<()> {
    let event: Value = serde_json::from_slice(body)?;
    let data = &event["data"];
    let mut violated = |what: String| report.violated(format!("job {number}: {what}"));
    let ended = if order.completes() { "completed" } else { "failed" };
    if event["type"] != format!("assets.generation.{ended}") {
        violated(format!("must be {ended}: {}, {}", event["type"], data["error"]));
    }
    let code = data["error"]["code"].as_str().unwrap_or_default();
    if ended == "failed" && !order.end_codes().contains(&code) {
        violated(format!("failed with {code:?}, which nothing of it explains"));
    }
    let job = rows.jobs.get(&order.job_id).with_context(|| format!("job {number} has no row"))?;
    if job["status"] != ended {
        violated(format!("its row says {}", job["status"]));
    }
    if job["published_at"].is_null() {
        violated("its row does not say that its terminal event was published".to_owned());
    }
    if job["terminal_event"].as_str().map(str::as_bytes) != Some(body) {
        violated("its row has another terminal event than was published".to_owned());
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
                if image.code().is_some() {
                    violated(format!("image {index} cannot be had, and is there"));
                }
            }
            (Some("failed"), [], [failure]) => {
                let failed = failure["code"].as_str();
                // Where too few can be had, what is left is not tried.
                let untried = failed == Some("not_attempted") && !order.completes();
                if failed != image.code() && !untried {
                    violated(format!("image {index} failed without a reason: {failure}"));
                }
            }
            (status, assets, failures) => violated(format!(
                "image {index} is {status:?} in its row, and stands {} times among the assets and {} times among the failures",
                assets.len(),
                failures.len()
            )),
        }
    }
    let job = if ended == "completed" { &mut report.completed } else { &mut report.failed };
    *job += 1;
    Ok(())
}

/// Each file is whole, measures 1920x1080 and belongs to one row; nothing else lies there.
fn look_at_files(stage: &Stage, rows: &Rows, report: &mut Report) -> Result<()> {
    let mut known = BTreeSet::new();
    for row in rows.completed() {
        let path = row["file_path"].as_str().context("a path")?;
        if !known.insert(path.to_owned()) {
            report.violated(format!("{path} belongs to two rows"));
        }
        match std::fs::read(stage.world.file(path)) {
            Err(error) => report.violated(format!("{path}: {error}")),
            Ok(bytes) => {
                let sha256 = format!("{:x}", bytes::Bytes::copy_from_slice(&Sha256::digest(&bytes)));
                if row["sha256"] != sha256.as_str() {
                    report.violated(format!("{path} is another file than its row says"));
                }
                match image::load_from_memory(&bytes) {
                    Ok(picture) if (picture.width(), picture.height()) == (1920, 1080) => {}
                    Ok(picture) => {
                        report.violated(format!("{path} measures {}x{}", picture.width(), picture.height()));
                    }
                    Err(error) => report.violated(format!("{path}: {error}")),
                }
            }
        }
    }
    report.files = known.len();
    for project in 1..=PROJECTS {
        let folder = format!("projects/{project}/assets");
        // A project of which nothing could be made has none.
        for file in std::fs::read_dir(stage.world.file(&folder)).into_iter().flatten() {
            let path = format!("{folder}/{}", file?.file_name().display());
            if !known.contains(&path) {
                report.violated(format!("{path} belongs to no row"));
            }
        }
    }
    Ok(())
}

/// No picture was asked for more often than its faults and its workers' ends explain.
fn look_at_requests(stage: &Stage, rows: &Rows, report: &mut Report) {
    let ledger = stage.world.sandbox.ledger();
    report.requests = ledger.requests;
    let mut ordered = 0;
    for (number, order) in stage.orders.iter().enumerate() {
        let assets = rows.assets.get(&order.job_id).map(Vec::as_slice).unwrap_or_default();
        for ((index, image), row) in (1..).zip(&order.images).zip(assets) {
            let asked = ledger.asked(&image.mark);
            ordered += asked.requests;
            let cut = stage.lives_cut.get(&(number, index)).copied().unwrap_or_default();
            let explained = image.requests() + cut;
            report.repeats_ordered += (image.requests() - 1).min(asked.requests.saturating_sub(1));
            report.repeats_after_losses += asked.requests.saturating_sub(image.requests());
            if asked.requests > explained {
                report.violated(format!(
                    "image {index} of job {number} was asked for {} times; {explained} are explained",
                    asked.requests
                ));
            }
            // What was not paid for in the database must not have been asked for.
            if u64::from(asked.requests) > row["requests"].as_u64().unwrap_or_default() {
                report.violated(format!(
                    "image {index} of job {number} was asked for {} times, and its row says {}",
                    asked.requests, row["requests"]
                ));
            }
        }
    }
    if ordered != ledger.requests {
        report.violated(format!("{} requests were for no image that was ordered", ledger.requests - ordered));
    }
}

/// Each rejected message lies there with its reason, and nothing else does.
fn look_at_dead_letters(stage: &Stage, letters: &[Message], report: &mut Report) {
    report.dead_letters = letters.len();
    let reason = |letter: &Message| letter.header("x-rejected-reason").unwrap_or_default();
    for letter in letters {
        let known = stage.rejected.iter().any(|(body, why)| *body == letter.body && reason(letter).starts_with(why));
        if !known {
            let body = String::from_utf8_lossy(&letter.body).into_owned();
            report.violated(format!("a dead letter with the reason {:?}: {body}", reason(letter)));
        }
    }
    for (body, why) in &stage.rejected {
        if !letters.iter().any(|letter| letter.body == *body) {
            let body = String::from_utf8_lossy(body);
            report.violated(format!("a message that is {why} lies not among the dead letters: {body}"));
        }
    }
}
