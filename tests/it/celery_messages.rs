//! Messages in Celery's format, without Celery: what follows the end of a job, workers that are killed meanwhile, and jobs
//! that are due later.

use std::time::Duration;

use anyhow::Result;
use dev_services::process::Signal;
use dev_services::wait;
use integration_tests::{BrokerClient, Database, Message, TestEnv, WAIT_TIMEOUT};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::celery::start_worker;

/// A task of Celery for one image, as its message says it. What follows it goes to the queue `render`.
struct Task {
    headers: Value,
    body: Value,
}

impl Task {
    fn new(id: &str, prompt: &str) -> Self {
        let linked = |task: &str| json!({"task": task, "args": [], "kwargs": {}, "options": {"queue": "render"}});
        let embed = json!({
            "callbacks": [linked("first"), linked("second")],
            "errbacks": [linked("failed")],
            "chain": [linked("last"), linked("next")],
            "chord": null,
        });
        let kwargs = json!({"project_id": 7, "image_descriptions": [prompt]});
        Self {
            headers: json!({"lang": "py", "task": "assets.generate", "id": id, "root_id": "root", "parent_id": null}),
            body: json!([[], kwargs, embed]),
        }
    }

    /// Makes it due after this time, and returns when that is.
    fn set_due_in(&mut self, delay: Duration) -> Result<OffsetDateTime> {
        let due_at = OffsetDateTime::now_utc() + delay;
        self.headers["eta"] = json!(due_at.format(&Rfc3339)?);
        Ok(due_at)
    }

    async fn publish(&self, producer: &BrokerClient) -> Result<()> {
        producer.publish_task(&self.headers, "replies", &self.body).await
    }
}

const TASK_ID: &str = "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10";

/// Declares the queues of results, of linked tasks, and of events.
async fn declare_queues(producer: &BrokerClient) -> Result<()> {
    producer.declare_plain_queue("replies").await?;
    producer.declare_plain_queue("render").await?;
    producer.bind_event_queue("events").await
}

/// Waits until a queue has received the terminal event of the only job.
async fn wait_for_terminal_event(env: &TestEnv) -> Result<()> {
    let published = async || {
        let rows = env.query_rows("SELECT id FROM jobs WHERE published_at IS NOT NULL").await.ok()?;
        (rows.len() == 1).then_some(())
    };
    wait::wait_until("the terminal event", WAIT_TIMEOUT, published).await
}

/// The names and ids of tasks, in the order of their messages.
fn names_and_ids(messages: &[Message]) -> Vec<(String, String)> {
    let header = |message: &Message, name| message.header(name).unwrap_or_default();
    messages.iter().map(|message| (header(message, "task"), header(message, "id"))).collect()
}

/// A worker is killed at a failpoint after the outcome is stored; another one publishes what is missing.
async fn links_and_result_survive_kill_at(point: &str, prompt: &str, database: Database) -> Result<()> {
    let mut env = TestEnv::with_database(database).await?;
    env.set("ASSET_WORKER_PAUSE_AT", point);
    let mut worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    Task::new(TASK_ID, prompt).publish(&producer).await?;
    worker.kill_at_failpoint(point).await?;
    let charged = env.sandbox.ledger().requests;
    let before = producer.drain_queue("render").await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let mut worker = env.start_ready_worker().await?;
    wait_for_terminal_event(&env).await?;
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    let is_failure = prompt.contains("fault");
    let expected: &[&str] = if is_failure { &["failed"] } else { &["first", "second", "next"] };
    let (before, after) = (names_and_ids(&before), names_and_ids(&producer.drain_queue("render").await?));
    if !matches!(point, "before_replies" | "between_replies") {
        assert!(after.is_empty(), "{point}: linked tasks are not repeated once they are confirmed: {after:?}");
    }
    let mut all: Vec<_> = [before.clone(), after.clone()].concat();
    all.sort_unstable();
    all.dedup();
    let mut names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable_by_key(|name| expected.iter().position(|expected| expected == name));
    assert_eq!(names, expected, "{point}: each task once, whatever was repeated: {before:?} {after:?}");
    let results: Vec<Value> = producer.drain_queue("replies").await?.iter().map(Message::json).collect();
    let status = if is_failure { "FAILURE" } else { "SUCCESS" };
    let finals: Vec<&Value> = results.iter().filter(|result| result["status"] == status).collect();
    assert!(!finals.is_empty() && finals.iter().all(|result| *result == finals[0]), "{point}: {results:?}");
    let events = producer.drain_queue("events").await?;
    let terminal =
        events.iter().filter(|event| event.event_type().ends_with("ed") && !event.event_type().ends_with("started"));
    assert!(terminal.count() >= 1, "{point}");
    assert_eq!(env.sandbox.ledger().requests, charged, "{point}: nothing is requested again");
    for queue in ["assets.generate", "assets.generate.dead"] {
        assert_eq!(producer.ready_count(queue).await?, 0, "{point}: {queue}");
    }
    assert_eq!(env.query_rows("SELECT job_id FROM outbox").await?.len(), 0, "{point}");
    Ok(())
}

#[tokio::test]
async fn worker_killed_before_first_reply_loses_none() -> Result<()> {
    links_and_result_survive_kill_at("before_replies", "A fox", Database::Postgres).await
}

#[tokio::test]
async fn worker_killed_between_replies_repeats_them_with_same_ids() -> Result<()> {
    links_and_result_survive_kill_at("between_replies", "A fox", Database::Sqlite).await
}

#[tokio::test]
async fn worker_killed_between_errbacks_and_result_loses_none() -> Result<()> {
    links_and_result_survive_kill_at("between_replies", "A fox [fault:status=400]", Database::Sqlite).await
}

#[tokio::test]
async fn worker_killed_after_replies_does_not_lose_terminal_event() -> Result<()> {
    links_and_result_survive_kill_at("before_event", "A fox", Database::Postgres).await
}

#[tokio::test]
async fn worker_killed_before_acknowledgement_repeats_no_link() -> Result<()> {
    links_and_result_survive_kill_at("after_event", "A fox", Database::Sqlite).await
}

/// Links leave before the result, and the result before the terminal event.
#[tokio::test]
async fn links_leave_before_result_and_event() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "before_event");
    let worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    Task::new(TASK_ID, "A fox").publish(&producer).await?;
    worker.wait_for_log("\"point\":\"before_event\"").await?;
    let linked = producer.drain_queue("render").await?;
    let names: Vec<String> = names_and_ids(&linked).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["first", "second", "next"]);
    let body = linked[2].json();
    assert_eq!(body[0][0]["job_id"], TASK_ID, "the result is the first argument");
    assert_eq!(body[2]["chain"][0]["task"], "last", "the rest of the chain");
    let header = |name| linked[2].header(name);
    assert_eq!((header("root_id").as_deref(), header("parent_id").as_deref()), (Some("root"), Some(TASK_ID)));
    let results: Vec<Value> = producer.drain_queue("replies").await?.iter().map(Message::json).collect();
    let states: Vec<&Value> = results.iter().map(|result| &result["status"]).collect();
    assert_eq!(states, ["STARTED", "PROGRESS", "SUCCESS"]);
    let events: Vec<String> = producer.drain_queue("events").await?.iter().map(Message::event_type).collect();
    assert_eq!(events, ["assets.generation.started", "assets.generation.progress"]);
    Ok(())
}

/// As an unroutable terminal event: kept, and sent again by `jobs republish`.
#[tokio::test]
async fn unroutable_link_is_kept_and_republished() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    producer.bind_event_queue("events").await?;
    let mut task = Task::new(TASK_ID, "A fox");
    task.body[2]["callbacks"][0]["options"] = json!({"exchange": "missing", "routing_key": "x"});
    // The queue of the results does not exist.
    task.publish(&producer).await?;
    wait_for_terminal_event(&env).await?;
    assert_eq!(env.query_rows("SELECT position FROM outbox").await?.len(), 3, "results are dropped, links are kept");
    let republish = async |argument: &str| env.run(&["jobs", "republish", argument]).await;
    let output = republish("--all").await?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no queue is bound for 3 of 3 messages"));
    producer.declare_plain_queue("render").await?;
    let output = republish(TASK_ID).await?;
    assert!(String::from_utf8_lossy(&output.stderr).contains("no queue is bound for 1 of 4 messages"), "{output:?}");
    let names: Vec<String> =
        names_and_ids(&producer.drain_queue("render").await?).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["second", "next"]);
    Ok(())
}

/// The rows of a job that is due later exist before its first claim: its command must not crash workers without end.
#[tokio::test]
async fn due_job_whose_command_crashes_workers_fails() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let mut worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    let mut task = Task::new(TASK_ID, "A fox");
    task.set_due_in(Duration::from_secs(2))?;
    task.publish(&producer).await?;
    worker.wait_for_log("job is due later").await?;
    let shown = env.run(&["jobs", "show", "--json", TASK_ID]).await?;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    assert!(shown["status"] == "waiting" && shown["due_at"].is_string(), "{shown}");
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "before_claim");
    for _ in 0..3 {
        env.start_worker()?.kill_at_failpoint("before_claim").await?;
    }
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let _worker = env.start_ready_worker().await?;
    let events = producer.take_messages("events", 1).await?;
    let data = events[0].json()["data"].clone();
    assert_eq!((&data["error"]["code"], &data["total"]), (&json!("attempts_exhausted"), &json!(1)), "{data}");
    assert_eq!(data["failures"][0]["code"], "not_attempted");
    let results: Vec<Value> = producer.drain_queue("replies").await?.iter().map(Message::json).collect();
    assert_eq!((results.len(), &results[0]["status"]), (1, &json!("FAILURE")), "{results:?}");
    assert_eq!(env.sandbox.ledger().requests, 0);
    Ok(())
}

/// Workers are killed after the rows of a job that is due later are written, and after its command is published.
#[tokio::test]
async fn due_job_runs_once_although_workers_are_lost() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("ASSET_WORKER_PAUSE_AT", "after_submission");
    let mut worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    let mut task = Task::new(TASK_ID, "A fox");
    task.set_due_in(Duration::from_secs(2))?;
    task.publish(&producer).await?;
    for point in ["after_submission", "after_due_commands"] {
        worker.kill_at_failpoint(point).await?;
        env.set("ASSET_WORKER_PAUSE_AT", "after_due_commands");
        worker = env.start_ready_worker().await?;
    }
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let _worker = env.start_ready_worker().await?;
    let linked = names_and_ids(&producer.take_messages("render", 3).await?);
    assert_eq!(linked.len(), 3, "{linked:?}");
    producer.wait_for_waiting_commands(0).await?;
    assert_eq!(env.sandbox.ledger().charged, 1);
    let rows = env.query_rows("SELECT status, due_at_ms FROM jobs").await?;
    assert_eq!(rows, [json!({"status": "completed", "due_at_ms": null})]);
    Ok(())
}

/// The command of a job that is due is put on the queue also while no command is taken from it.
#[tokio::test]
async fn job_is_due_behind_a_closed_gate() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    let mut task = Task::new(TASK_ID, "A fox");
    let due_at = task.set_due_in(Duration::from_secs(3))?;
    task.publish(&producer).await?;
    worker.wait_for_log("job is due later").await?;
    assert!(env.run(&["pause"]).await?.status.success());
    producer.wait_for_waiting_commands(1).await?;
    assert!(OffsetDateTime::now_utc() >= due_at, "not before it is due");
    assert_eq!(env.query_rows("SELECT status, due_at_ms FROM jobs").await?[0]["status"], "waiting");
    assert!(env.run(&["resume"]).await?.status.success());
    assert_eq!(producer.take_messages("replies", 3).await?[2].json()["status"], "SUCCESS");
    Ok(())
}

/// Names and headers that AMQP cannot encode, and an exchange that refuses messages, must not harm a worker.
#[tokio::test]
async fn linked_task_that_cannot_be_published_harms_no_worker() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let mut worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    let mut task = Task::new(TASK_ID, "A fox");
    // The broker lets no client publish to this exchange.
    task.body[2]["callbacks"] = json!([
        {"task": "first", "options": {"exchange": "amq.rabbitmq.trace", "routing_key": "x"}},
        {"task": "second", "options": {"queue": "render", "shadow": "s".repeat(200_000)}},
        {"task": "third", "options": {"queue": "render", "eta": {"k".repeat(300): 1}}},
    ]);
    task.publish(&producer).await?;
    let results = producer.take_messages("replies", 3).await?;
    assert_eq!(results[2].json()["status"], "SUCCESS");
    assert_eq!(names_and_ids(&producer.take_messages("render", 1).await?)[0].0, "next");
    wait_for_terminal_event(&env).await?;
    assert_eq!(env.query_rows("SELECT position FROM outbox").await?.len(), 3, "they are kept");
    assert!(worker.is_running() && !worker.log().contains("broker connection lost"));
    let metrics = worker.metrics().await?;
    assert_eq!(metrics.value("asset_worker_terminal_events_total", &[("outcome", "unrouted")]), Some(3.0));
    Ok(())
}

/// The message is sent again after its job has ended: the result is repeated, and linked tasks are not.
#[tokio::test]
async fn repeated_task_gets_its_result_again() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    let task = Task::new(TASK_ID, "A fox");
    task.publish(&producer).await?;
    let first = producer.take_messages("replies", 3).await?;
    assert_eq!(producer.take_messages("render", 3).await?.len(), 3);
    task.publish(&producer).await?;
    let again = producer.take_messages("replies", 1).await?;
    assert_eq!(again[0].json(), first[2].json());
    producer.wait_for_waiting_commands(0).await?;
    assert!(producer.drain_queue("render").await?.is_empty());
    // Another command with this id: its own caller is told.
    let conflict = Task::new(TASK_ID, "A bear");
    conflict.publish(&producer).await?;
    let failure = producer.take_messages("replies", 1).await?[0].json();
    assert_eq!(failure["result"]["exc_message"][0], "job_id_conflict", "{failure}");
    Ok(())
}

/// `CELERY_TASKS` is not set.
#[tokio::test]
async fn tasks_are_refused_unless_they_are_accepted() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    declare_queues(&producer).await?;
    Task::new(TASK_ID, "A fox").publish(&producer).await?;
    let dead = producer.take_dead_letter().await?;
    let reason = "invalid_request: task: \"assets.generate\" is not allowed; Celery's messages are accepted only if \
                  CELERY_TASKS is set";
    assert_eq!(dead.header("x-rejected-reason").as_deref(), Some(reason));
    let text = |property: &Option<lapin::types::ShortString>| property.as_ref().map(ToString::to_string);
    assert_eq!(text(dead.properties().reply_to()).as_deref(), Some("replies"));
    assert_eq!(text(dead.properties().correlation_id()).as_deref(), Some(TASK_ID));
    let failure = producer.take_messages("replies", 1).await?[0].json();
    assert_eq!((&failure["status"], &failure["result"]["exc_type"]), (&json!("FAILURE"), &json!("RuntimeError")));
    let linked = names_and_ids(&producer.take_messages("render", 1).await?);
    assert_eq!(linked[0].0, "failed", "the errback is published too");
    // Protocol 1 has no headers.
    let body = json!({"task": "assets.generate", "id": TASK_ID, "args": [], "kwargs": {}});
    producer.publish(&body).await?;
    let reason = producer.take_dead_letter().await?.header("x-rejected-reason");
    let expected = "invalid_request: body: Celery's protocol 1 is not allowed; protocol 2, so task_protocol=2";
    assert_eq!(reason.as_deref(), Some(expected));
    Ok(())
}
