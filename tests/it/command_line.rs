//! The command line: output and exit codes.

use std::process::Output;

use anyhow::{Context, Result};
use integration_tests::{Collector, Database, TestEnv, command};
use serde_json::{Value, json};

fn stdout_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}\n{}", stdout_text(output), stderr_text(output));
}

fn parse_stdout(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| stdout_text(output))
}

/// An address on which no broker listens.
const UNREACHABLE_BROKER_URL: &str = "amqp://guest:hunter2@127.0.0.1:1/%2f";

#[tokio::test]
async fn generate_runs_job_without_broker_and_jobs_show_prints_it() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("AMQP_URL", UNREACHABLE_BROKER_URL);
    let output = env.run(&["generate", "--project", "42", "A fox", "A bear"]).await?;
    assert_exit(&output, 0);
    let text = stdout_text(&output);
    assert!(text.contains("2 of 2 images (100%)"), "{text}");
    assert!(text.contains("projects/42/assets/image_002.png"), "{text}");
    assert!(stderr_text(&output).contains("image 1 completed"), "{}", stderr_text(&output));

    let list = parse_stdout(&env.run(&["jobs", "list", "--json"]).await?)?;
    let job_id = list[0]["job_id"].as_str().expect("job_id is a string").to_owned();
    assert_eq!((&list[0]["status"], &list[0]["total"]), (&json!("completed"), &json!(2)));
    let job = parse_stdout(&env.run(&["jobs", "show", &job_id, "--json"]).await?)?;
    assert_eq!(job["assets"][1]["metadata"]["description"], "A bear");
    let shown = stdout_text(&env.run(&["jobs", "show", &job_id]).await?);
    assert!(shown.contains("projects/42/assets/image_001.png"), "{shown}");
    let listed = stdout_text(&env.run(&["jobs", "list", "--project", "42"]).await?);
    assert!(listed.contains(&job_id), "{listed}");
    assert!(stderr_text(&env.run(&["jobs", "list", "--project", "7"]).await?).contains("no such jobs"));
    let unknown = env.run(&["jobs", "show", "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10"]).await?;
    assert_exit(&unknown, 64);
    Ok(())
}

#[tokio::test]
async fn generate_of_failed_job_exits_1_and_prints_event() -> Result<()> {
    let env = TestEnv::new().await?;
    let output = env.run(&["generate", "--json", "A gory battle"]).await?;
    assert_exit(&output, 1);
    let event = parse_stdout(&output)?;
    assert_eq!(event["type"], "assets.generation.failed");
    assert_eq!(event["data"]["failures"][0]["code"], "content_policy");
    Ok(())
}

#[tokio::test]
async fn generate_retries_failures_and_does_not_repeat_finished_job() -> Result<()> {
    let env = TestEnv::new().await?;
    let command = command(3, &["A shy fox [fault:status=503 x4]"], &json!({}));
    let file = env.folder().join("job.json");
    std::fs::write(&file, command.to_string())?;
    let file = file.to_str().expect("the path is UTF-8");
    let first = env.run(&["generate", "--json", "--file", file]).await?;
    assert_exit(&first, 0);
    assert!(stderr_text(&first).contains("tried again in 200ms"), "{}", stderr_text(&first));
    let again = env.run(&["generate", "--json", "--file", file]).await?;
    assert_eq!(stdout_text(&first), stdout_text(&again));
    assert_eq!(env.sandbox.ledger().prompt_counts("A shy fox").requests, 5);
    let job_id = command["job_id"].as_str().expect("job_id is a string");
    let conflict = env.run(&["generate", "--job-id", job_id, "Another"]).await?;
    assert_exit(&conflict, 64);
    Ok(())
}

#[tokio::test]
async fn submit_waits_and_exits_with_the_jobs_result() -> Result<()> {
    let env = TestEnv::new().await?;
    let _worker = env.start_ready_worker().await?;
    let good = env.run(&["submit", "--wait", "--project", "5", "A fox", "A bear"]).await?;
    assert_exit(&good, 0);
    assert!(stdout_text(&good).contains("projects/5/assets/image_002.png"), "{}", stdout_text(&good));
    let bad = env.run(&["submit", "--wait", "--json", "A gory battle"]).await?;
    assert_exit(&bad, 1);
    let event = parse_stdout(&bad)?;
    assert_eq!(event["data"]["error"]["code"], "success_rate_too_low");
    let job_id = event["data"]["job_id"].as_str().expect("job_id is a string");
    let conflict = env.run(&["submit", "--wait", "--job-id", job_id, "A fox"]).await?;
    assert_exit(&conflict, 1);
    assert!(stderr_text(&conflict).contains("was refused: job_id_conflict"), "{}", stderr_text(&conflict));
    Ok(())
}

#[tokio::test]
async fn submit_without_waiting_leaves_the_command_on_the_queue() -> Result<()> {
    let env = TestEnv::new().await?;
    let output = env.run(&["submit", "--json", "A fox"]).await?;
    assert_exit(&output, 0);
    assert_eq!(parse_stdout(&output)?["total"], 1);
    assert_eq!(env.connect_broker().await?.ready_count("assets.generate").await?, 1);
    let unanswered = env.run(&["submit", "--wait", "--timeout", "100ms", "A bear"]).await?;
    assert_exit(&unanswered, 69);
    assert!(stderr_text(&unanswered).contains("is a worker running?"), "{}", stderr_text(&unanswered));
    Ok(())
}

#[tokio::test]
async fn submit_reports_invalid_command_before_publishing() -> Result<()> {
    let env = TestEnv::new().await?;
    let output = env.run(&["submit", "--project", "0", "--config", r#"{"steps": 5, "sparkle": 1}"#, "A fox"]).await?;
    assert_exit(&output, 64);
    for part in [
        "project_id: 0 is not allowed",
        "config.steps: 5 is not allowed; a whole number from 10 to 50",
        "config.sparkle: unknown key",
    ] {
        assert!(stderr_text(&output).contains(part), "{}", stderr_text(&output));
    }
    assert_exit(&env.run(&["submit"]).await?, 64);
    assert_exit(&env.run(&["submit", "--config", "{", "A fox"]).await?, 64);
    assert_exit(&env.run(&["submit", "--file", "nowhere.json"]).await?, 64);
    assert_exit(&env.run(&["paint"]).await?, 64);
    assert_exit(&env.run(&["--help"]).await?, 0);
    assert_exit(&env.run(&["--version"]).await?, 0);
    Ok(())
}

#[tokio::test]
async fn unreachable_service_exits_with_code_69() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("AMQP_URL", UNREACHABLE_BROKER_URL);
    let submit = env.run(&["submit", "A fox"]).await?;
    assert_exit(&submit, 69);
    assert!(stderr_text(&submit).contains("broker: cannot connect"), "{}", stderr_text(&submit));
    assert!(!stderr_text(&submit).contains("hunter2"), "{}", stderr_text(&submit));
    env.set("DATABASE_URL", "postgres://worker:hunter2@127.0.0.1:1/assets");
    let jobs = env.run(&["jobs", "list"]).await?;
    assert_exit(&jobs, 69);
    assert!(stderr_text(&jobs).contains("database: cannot connect"), "{}", stderr_text(&jobs));
    assert!(!stderr_text(&jobs).contains("hunter2"), "{}", stderr_text(&jobs));
    Ok(())
}

#[tokio::test]
async fn migrate_brings_both_databases_up_to_date_once() -> Result<()> {
    for database in [Database::Sqlite, Database::Postgres] {
        let env = TestEnv::with_database(database).await?;
        let before = env.run(&["jobs", "list"]).await?;
        assert_exit(&before, 69);
        assert!(stderr_text(&before).contains("asset-worker migrate"), "{}", stderr_text(&before));
        let first = parse_stdout(&env.run(&["migrate", "--json"]).await?)?;
        assert!(first["applied"].as_u64().is_some_and(|applied| applied > 0), "{first}");
        let second = env.run(&["migrate"]).await?;
        assert_exit(&second, 0);
        assert!(stdout_text(&second).contains("up to date"), "{}", stdout_text(&second));
        assert_exit(&env.run(&["jobs", "list"]).await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn doctor_reports_each_check_and_gives_advice_on_failure() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let well = env.run(&["doctor"]).await?;
    assert_exit(&well, 0);
    for name in ["settings", "broker", "database", "storage", "api"] {
        assert!(
            stdout_text(&well).lines().any(|line| line.starts_with(&format!("ok      {name}"))),
            "{}",
            stdout_text(&well)
        );
    }
    env.set("AMQP_URL", UNREACHABLE_BROKER_URL);
    env.set("STABILITY_API_KEY", "sk-hunter2");
    let ill = env.run(&["doctor", "--json"]).await?;
    assert_exit(&ill, 69);
    let findings = parse_stdout(&ill)?;
    let of =
        |name: &str| findings.as_array().and_then(|all| all.iter().find(|finding| finding["name"] == name)).cloned();
    let broker = of("broker").expect("the broker is checked");
    assert_eq!(broker["status"], "failed");
    assert!(broker["advice"].as_str().is_some_and(|advice| advice.contains("AMQP_URL")), "{broker}");
    assert_eq!(of("api").expect("the API is checked")["status"], "failed");
    assert_eq!(of("storage").expect("the storage is checked")["status"], "ok");
    assert!(!stdout_text(&ill).contains("hunter2"), "{}", stdout_text(&ill));
    env.set("IMAGE_STEPS", "5");
    let bad = env.run(&["doctor"]).await?;
    assert_exit(&bad, 64);
    assert!(stdout_text(&bad).contains("IMAGE_STEPS: \"5\" is not allowed"), "{}", stdout_text(&bad));
    Ok(())
}

#[tokio::test]
async fn doctor_detects_wrong_queue_arguments_and_unreachable_collector() -> Result<()> {
    let collector = Collector::start().await?;
    let mut env = TestEnv::new().await?;
    let found = |output: &Output, name: &str| -> Result<Value> {
        let findings = parse_stdout(output)?;
        let found = findings.as_array().and_then(|findings| findings.iter().find(|finding| finding["name"] == name));
        found.cloned().with_context(|| format!("{name} is not among {findings}"))
    };
    for protocol in ["grpc", "http/protobuf"] {
        env.set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
        env.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.clone());
        let well = env.run(&["doctor", "--json"]).await?;
        assert_exit(&well, 0);
        assert_eq!(found(&well, "telemetry")?["status"], "ok");
        assert_eq!(
            found(&well, "queues")?["message"],
            "0 of 6 queues exist with the expected arguments; the next start declares the others"
        );
        env.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
        let ill = env.run(&["doctor", "--json"]).await?;
        assert_exit(&ill, 69);
        let telemetry = found(&ill, "telemetry")?;
        assert_eq!(telemetry["status"], "failed", "{telemetry}");
        assert!(telemetry["advice"].as_str().is_some_and(|advice| advice.contains("OTEL_EXPORTER_OTLP_ENDPOINT")));
    }
    env.set("OTEL_EXPORTER_OTLP_ENDPOINT", "");
    drop(env.start_ready_worker().await?);
    let well = env.run(&["doctor", "--json"]).await?;
    assert_eq!(found(&well, "queues")?["message"], "all 6 queues exist with the expected arguments");
    let other = TestEnv::new().await?;
    other.connect_broker().await?.declare_plain_queue("assets.generate.dead").await?;
    let ill = other.run(&["doctor", "--json"]).await?;
    assert_exit(&ill, 69);
    let queues = found(&ill, "queues")?;
    assert!(
        queues["message"].as_str().is_some_and(|why| why.contains("assets.generate.dead has other arguments")),
        "{queues}"
    );
    Ok(())
}
