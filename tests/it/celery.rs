//! The real Celery calls the worker, and its workers run the tasks that follow.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::{Process, Signal};
use dev_services::{python, wait};
use integration_tests::{TestEnv, WAIT_TIMEOUT, Worker};
use serde_json::{Value, json};

/// The versions of Celery that call the worker.
const CELERY: [(&str, &str); 2] = [("celery-5.6", "celery==5.6.3"), ("celery-5.7", "celery==5.7.0")];

/// Returns the Python interpreter with this version of Celery, and with Flower.
async fn python_with(celery: usize) -> Result<PathBuf> {
    let (name, package) = CELERY[celery];
    let install =
        move || python::environment(name, &[package, "flower==2.2.0", "backports.zstd==1.8.0", "pyyaml==6.0.4"]);
    tokio::task::spawn_blocking(install).await?
}

/// The folder of the Python programs of these tests.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("celery")
}

/// A worker that accepts the task `assets.generate`, with one job at a time.
pub(crate) async fn start_worker(env: &mut TestEnv) -> Result<Worker> {
    env.make_images_small();
    env.set("CELERY_TASKS", "assets.generate, assets.other");
    env.set("CELERY_EVENTS", "true");
    env.start_ready_worker().await
}

/// Runs a scenario of `client.py` and returns what it prints.
async fn call(env: &TestEnv, python: &Path, arguments: &[&str]) -> Result<Value> {
    let mut command = env.python_command(python, &programs());
    command.arg("client.py").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(WAIT_TIMEOUT, command.output()).await.context("client.py did not end")??;
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).with_context(|| errors.into_owned())
}

/// Runs a scenario with both versions of Celery at the same time.
async fn call_with_both(env: &TestEnv, scenario: &str) -> Result<Vec<Value>> {
    let calls = [0, 1].map(async |celery| call(env, &python_with(celery).await?, &[scenario]).await);
    futures_util::future::try_join_all(calls).await
}

/// Starts a Celery worker that runs the tasks of `tasks.py`.
async fn start_celery_worker(env: &TestEnv, celery: usize) -> Result<Process> {
    start_celery_worker_of(env, celery, "tasks", &programs()).await
}

/// Starts a Celery worker with an application in a folder.
async fn start_celery_worker_of(env: &TestEnv, celery: usize, app: &str, folder: &Path) -> Result<Process> {
    let python = python_with(celery).await?;
    let mut command = env.python_command(&python, folder);
    command.args(["-m", "celery", "-A", app, "worker", "-P", "solo"]);
    let process = Process::start_logged("celery worker", command, &env.folder().join("celery.log"))?;
    // A message for its queue would be kept before.
    let declared = async || env.queue_names().await.ok()?.iter().any(|queue| queue == "celery").then_some(());
    wait::wait_until("the queue of the Celery worker", WAIT_TIMEOUT, declared).await?;
    Ok(process)
}

/// The lines that the tasks of `tasks.py` have written, by the name of the task.
fn records(env: &TestEnv, task: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(env.folder().join("record.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["task"] == task).collect()
}

async fn wait_for_records(env: &TestEnv, task: &str, expected: usize) -> Result<Vec<Value>> {
    let found = async || Some(records(env, task)).filter(|records| records.len() >= expected);
    wait::wait_until(&format!("{expected} runs of {task}"), WAIT_TIMEOUT, found).await
}

/// Asserts that a caller got this exception, and returns its arguments.
fn assert_raises<'a>(outcome: &'a Value, kind: &str) -> Vec<&'a str> {
    assert_eq!(outcome["error"], kind, "{outcome}");
    outcome["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn caller_gets_states_and_completion_data() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let mut events = env.connect_broker().await?.subscribe_to_events().await?;
    for seen in call_with_both(&env, "success").await? {
        let states: Vec<&str> = seen["states"].as_array().into_iter().flatten().filter_map(|s| s[0].as_str()).collect();
        assert_eq!(states, ["STARTED", "PROGRESS", "PROGRESS", "SUCCESS"], "{seen}");
        let started = &seen["states"][0][1];
        assert!(
            started["pid"].is_u64() && started["hostname"].as_str().is_some_and(|host| host.contains('@')),
            "{seen}"
        );
        let progress = &seen["states"][2][1];
        assert_eq!(
            (&progress["total"], &progress["succeeded"], &progress["failed"]),
            (&json!(2), &json!(2), &json!(0))
        );
        let data = &seen["data"];
        assert_eq!((&data["job_id"], &data["succeeded"]), (&seen["id"], &json!(2)), "the task id is the job id");
        assert_eq!(events.wait_for_data("completed").await?["total"], 2);
    }
    Ok(())
}

#[tokio::test]
async fn arguments_are_named_positional_or_one_object() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let outcomes = call(&env, &python_with(1).await?, &["arguments"]).await?;
    let projects: Vec<_> = (0..4).map(|index| outcomes[index]["value"]["project_id"].clone()).collect();
    assert_eq!(projects, [json!(2), json!(3), json!(4), json!(4)], "{outcomes}");
    let seed = |index: usize| outcomes[index]["value"]["assets"][0]["seed"].clone();
    assert_eq!((seed(0), seed(1)), (json!(7), json!(8)));
    // Two tasks asked for the same job: it is run once, and both callers get its result.
    assert_eq!(outcomes[2]["value"], outcomes[3]["value"]);
    assert_ne!(outcomes[2]["id"], outcomes[3]["id"]);
    assert_eq!(env.sandbox.ledger().charged, 3);
    for outcome in call_with_both(&env, "queues").await? {
        assert_eq!(outcome["value"]["succeeded"], 1, "the queue is named and not declared: {outcome}");
    }
    Ok(())
}

#[tokio::test]
async fn each_failure_reaches_its_caller_with_code_and_message() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    for seen in call_with_both(&env, "failures").await? {
        let arguments = |name: &str| assert_raises(&seen[name], "builtins.RuntimeError").join(": ");
        assert!(arguments("failed").starts_with("success_rate_too_low: 0 of 1 images"), "{seen}");
        assert!(arguments("invalid").starts_with("invalid_request: project_id: 0 is not allowed"), "{seen}");
        assert_eq!(
            arguments("unknown"),
            "invalid_request: task: \"assets.paint\" is not allowed; assets.generate, assets.other"
        );
        assert!(arguments("without_project").contains("project_id: \"one\" is not allowed"), "{seen}");
        assert!(arguments("too_many").contains("args: too many"), "{seen}");
    }
    let producer = env.connect_broker().await?;
    for _ in 0..8 {
        let reason = producer.take_dead_letter().await?.header("x-rejected-reason").unwrap_or_default();
        assert!(reason.starts_with("invalid_request: "), "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn chord_is_refused_by_name() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    for seen in call_with_both(&env, "chords").await? {
        assert!(seen["refused_by_celery"].as_str().is_some_and(|reason| reason.contains("chord")), "{seen}");
        for name in ["linked", "member"] {
            let arguments = assert_raises(&seen[name], "builtins.RuntimeError");
            assert!(arguments[1].starts_with("chord: not allowed"), "{seen}");
        }
        assert_eq!(seen["group_at_the_end"], true);
    }
    Ok(())
}

#[tokio::test]
async fn compressed_bodies_are_read_and_other_formats_refused() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    for outcomes in call_with_both(&env, "compression").await? {
        let succeeded = outcomes.as_array().into_iter().flatten().filter(|one| one["value"]["succeeded"] == 1).count();
        assert_eq!(succeeded, 4, "{outcomes}");
    }
    for seen in call_with_both(&env, "formats").await? {
        let reason = |name: &str| assert_raises(&seen[name], "builtins.RuntimeError")[1].to_owned();
        assert!(
            reason("pickle").starts_with("content_type: \"application/x-python-serialize\" is not allowed"),
            "{seen}"
        );
        assert!(reason("yaml").starts_with("content_type: \"application/x-yaml\" is not allowed"), "{seen}");
        assert_eq!(reason("lzma"), "compression: \"application/x-lzma\" is not allowed; zlib, bzip2 or zstd");
        assert_eq!(reason("bomb"), "body: more than 4194304 bytes is not allowed");
    }
    Ok(())
}

#[tokio::test]
async fn callbacks_and_errbacks_run_after_the_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let _celery = start_celery_worker(&env, 1).await?;
    let both = call_with_both(&env, "links").await?;
    let (notes, failures) =
        (wait_for_records(&env, "tasks.note", 6).await?, wait_for_records(&env, "tasks.failed", 2).await?);
    for outcomes in both {
        let id = |index: usize| &outcomes[index]["id"];
        let of = |index: usize| notes.iter().filter(move |note| note["parent"] == *id(index)).collect::<Vec<_>>();
        let given: Vec<&Value> = of(0).iter().map(|note| &note["args"]).collect();
        let result = &outcomes[0]["value"];
        assert!(given.contains(&&json!([result])) && given.contains(&&json!([result, "with", "more"])), "{notes:?}");
        assert!(of(0).iter().all(|note| note["root"] == *id(0)), "{notes:?}");
        assert_eq!(of(1).iter().map(|note| &note["args"]).collect::<Vec<_>>(), [&json!(["alone"])], "immutable");
        assert!(of(2).is_empty());
        let failed: Vec<&Value> = failures.iter().filter(|failed| failed["parent"] == *id(2)).collect();
        assert_eq!(failed.len(), 1, "{failures:?}");
        assert_eq!(failed[0]["args"], json!([id(2)]));
    }
    Ok(())
}

#[tokio::test]
async fn chains_and_groups_continue_with_the_result() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let _celery = start_celery_worker(&env, 0).await?;
    for seen in call_with_both(&env, "pipelines").await? {
        let paths = seen["whole"]["value"][0]["video_of"].as_array().map(Vec::len);
        assert_eq!(paths, Some(2), "{seen}");
        // A caller that waits for the last task of a chain learns that an earlier one failed.
        assert_eq!(assert_raises(&seen["broken"], "builtins.RuntimeError")[0], "success_rate_too_low");
        let several = &seen["several"];
        assert_eq!((&several[0]["project_id"], several[1]["video_of"].as_array().map(Vec::len)), (&json!(3), Some(1)));
    }
    let describes = records(&env, "tasks.describe");
    for describe in &describes {
        let rendered: Vec<Value> =
            records(&env, "tasks.render").into_iter().filter(|one| one["root"] == describe["id"]).collect();
        assert_eq!(rendered.len(), 1, "the root of a chain is kept: {rendered:?}");
        assert_ne!(rendered[0]["parent"], describe["id"], "its parent is our task");
    }
    assert_eq!(describes.len(), 2);
    assert!(records(&env, "tasks.render").iter().all(|one| one["args"][0]["job_id"] == one["parent"]));
    Ok(())
}

#[tokio::test]
async fn job_with_countdown_is_run_when_it_is_due() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let _celery = start_celery_worker(&env, 1).await?;
    for seen in call_with_both(&env, "later").await? {
        assert_eq!(seen["due"]["value"]["succeeded"], 1, "{seen}");
        assert!(seen["elapsed"].as_f64() >= Some(1.9), "not before it is due: {seen}");
        // Two tasks share a job that is due later: both get its result.
        let shared = &seen["shared"];
        assert!(shared[0]["value"]["job_id"].is_string() && shared[0]["value"] == shared[1]["value"], "{shared}");
        assert_eq!(assert_raises(&seen["expired"], "celery.exceptions.TaskRevokedError"), ["expired"]);
    }
    let notes = wait_for_records(&env, "tasks.note", 2).await?;
    assert!(notes.iter().all(|note| note["args"][0]["succeeded"] == 1), "{notes:?}");
    Ok(())
}

#[tokio::test]
async fn revoked_tasks_end_wherever_they_are() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    env.sandbox.set_latency(Duration::from_millis(300));
    let _worker = start_worker(&mut env).await?;
    for celery in [0, 1] {
        let outcomes = call(&env, &python_with(celery).await?, &["revoke"]).await?;
        for outcome in outcomes.as_array().into_iter().flatten() {
            assert_eq!(assert_raises(outcome, "celery.exceptions.TaskRevokedError"), ["revoked"]);
        }
    }
    assert!(env.sandbox.ledger().charged < 80, "the running job was stopped");
    let rows = env.query_rows("SELECT error_code FROM jobs").await?;
    assert!(rows.len() == 6 && rows.iter().all(|row| row["error_code"] == "cancelled"), "{rows:?}");
    Ok(())
}

#[tokio::test]
async fn remote_control_describes_the_worker() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.sandbox.set_latency(Duration::from_millis(400));
    let _worker = start_worker(&mut env).await?;
    for celery in [0, 1] {
        let seen = call(&env, &python_with(celery).await?, &["inspect"]).await?;
        let node = seen["node"].as_str().unwrap_or_default();
        let answer = |name: &str| &seen["answers"][name][node];
        assert_eq!(answer("ping"), &json!({"ok": "pong"}), "{seen}");
        assert_eq!(
            (&answer("active")[0]["id"], &answer("active")[0]["name"]),
            (&seen["id"], &json!("assets.generate"))
        );
        assert_eq!(answer("reserved"), &json!([]));
        assert!(answer("stats")["pid"].is_u64() && answer("stats")["pool"]["max-concurrency"] == 2, "{seen}");
        assert_eq!(answer("registered"), &json!(["assets.generate", "assets.other"]));
        assert_eq!(
            (&seen["answers"]["other"], &seen["answers"]["matched"][node]),
            (&Value::Null, &json!({"ok": "pong"}))
        );
        assert!(
            answer("conf")["error"].as_str().is_some_and(|error| error.starts_with("conf: not supported")),
            "{seen}"
        );
        assert_eq!(seen["outcome"]["value"]["succeeded"], 6);
    }
    Ok(())
}

#[tokio::test]
async fn flower_shows_worker_and_tasks() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let python = python_with(1).await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = env.python_command(&python, &programs());
    command.args(["-m", "celery", "-A", "tasks", "flower", &format!("--port={port}"), "--address=127.0.0.1"]);
    command.env("FLOWER_UNAUTHENTICATED_API", "true");
    let _flower = Process::start_logged("flower", command, &env.folder().join("flower.log"))?;
    let client = dev_services::http_client()?;
    let get = async |path: &str| -> Option<Value> {
        let response = client.get(format!("http://127.0.0.1:{port}/api/{path}")).send().await.ok()?;
        response.json().await.ok()
    };
    let worker_shown = async || {
        let workers = get("workers?refresh=true").await?;
        let (name, worker) = workers.as_object()?.iter().next()?;
        (name.starts_with("asset-worker-") && worker["registered"][0] == "assets.generate").then_some(())
    };
    wait::wait_until("the worker in Flower", WAIT_TIMEOUT, worker_shown).await?;
    let good = call(&env, &python, &["success"]).await?;
    let failed = call(&env, &python, &["failures"]).await?;
    let task_shown = async |id: &Value, state: &str| {
        let tasks = get("tasks").await?;
        let task = &tasks[id.as_str()?];
        (task["state"] == state).then(|| task.clone())
    };
    for (id, state) in [(&good["id"], "SUCCESS"), (&failed["failed"]["id"], "FAILURE")] {
        let shown = wait::wait_until("a task in Flower", WAIT_TIMEOUT, async || task_shown(id, state).await).await?;
        assert_eq!(shown["name"], "assets.generate", "{shown}");
    }
    Ok(())
}

/// As docs/celery.md says.
#[tokio::test]
async fn example_pipeline_renders_a_video() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _worker = start_worker(&mut env).await?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/celery");
    let requirements = std::fs::read_to_string(folder.join("requirements.txt"))?;
    assert_eq!(requirements.trim(), CELERY[1].1, "the version that this test runs");
    let _celery = start_celery_worker_of(&env, 1, "pipeline", &folder).await?;
    let mut command = env.python_command(&python_with(1).await?, &folder);
    command.args(["pipeline.py", "A lighthouse"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(WAIT_TIMEOUT, command.output()).await??;
    let printed = String::from_utf8_lossy(&output.stdout);
    let expected = "a video of 3 images: projects/42/assets/image_001.png, projects/42/assets/image_002.png, ";
    assert!(printed.starts_with(expected), "{printed} {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The broker dead-letters a message whose time to live has passed. Its job fails, and its caller is told.
#[tokio::test]
async fn message_that_expires_on_the_queue_fails_its_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let mut worker = start_worker(&mut env).await?;
    let producer = env.connect_broker().await?;
    producer.bind_event_queue("events").await?;
    assert!(env.run(&["pause"]).await?.status.success());
    worker.wait_for_log("account gate closed").await?;
    let python = python_with(1).await?;
    let outcome = call(&env, &python, &["expires"]).await?;
    assert_eq!(assert_raises(&outcome, "celery.exceptions.TaskRevokedError"), ["expired"]);
    let events = producer.take_messages("events", 1).await?;
    assert_eq!(events[0].json()["data"]["error"]["code"], "expired", "{:?}", events[0]);
    let listed = env.run(&["dead-letters", "list", "--json"]).await?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    assert_eq!(listed[0]["reason"], "expired", "{listed}");
    worker.signal(Signal::TERM);
    worker.wait_for_exit().await?;
    Ok(())
}
