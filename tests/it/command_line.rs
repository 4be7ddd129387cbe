//! The command line: what it prints, and what it exits with.

use std::process::Output;

use anyhow::{Context, Result};
use integration_tests::{Collector, Database, World, command};
use serde_json::{Value, json};

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}\n{}", printed(output), complained(output));
}

fn parsed(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| printed(output))
}

/// An address where nobody listens.
const NOBODY: &str = "amqp://guest:hunter2@127.0.0.1:1/%2f";

#[tokio::test]
async fn generate_does_a_job_without_a_broker_and_jobs_shows_it() -> Result<()> {
    let mut world = World::new().await?;
    world.set("AMQP_URL", NOBODY);
    let output = world.run(&["generate", "--project", "42", "A fox", "A bear"]).await?;
    assert_exit(&output, 0);
    let text = printed(&output);
    assert!(text.contains("2 of 2 images (100%)"), "{text}");
    assert!(text.contains("projects/42/assets/image_002.png"), "{text}");
    assert!(complained(&output).contains("image 1 completed"), "{}", complained(&output));

    let list = parsed(&world.run(&["jobs", "list", "--json"]).await?)?;
    let job_id = list[0]["job_id"].as_str().expect("an id").to_owned();
    assert_eq!((&list[0]["status"], &list[0]["total"]), (&json!("completed"), &json!(2)));
    let job = parsed(&world.run(&["jobs", "show", &job_id, "--json"]).await?)?;
    assert_eq!(job["assets"][1]["metadata"]["description"], "A bear");
    let shown = printed(&world.run(&["jobs", "show", &job_id]).await?);
    assert!(shown.contains("projects/42/assets/image_001.png"), "{shown}");
    let listed = printed(&world.run(&["jobs", "list", "--project", "42"]).await?);
    assert!(listed.contains(&job_id), "{listed}");
    assert!(complained(&world.run(&["jobs", "list", "--project", "7"]).await?).contains("no jobs yet"));
    let unknown = world.run(&["jobs", "show", "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10"]).await?;
    assert_exit(&unknown, 64);
    Ok(())
}

#[tokio::test]
async fn generate_exits_1_where_the_job_fails_and_prints_its_terminal_event() -> Result<()> {
    let world = World::new().await?;
    let output = world.run(&["generate", "--json", "A gory battle"]).await?;
    assert_exit(&output, 1);
    let event = parsed(&output)?;
    assert_eq!(event["type"], "assets.generation.failed");
    assert_eq!(event["data"]["failures"][0]["code"], "content_policy");
    Ok(())
}

#[tokio::test]
async fn generate_tries_again_what_may_pass_and_knows_a_job_it_has_done() -> Result<()> {
    let world = World::new().await?;
    let command = command(3, &["A shy fox [fault:status=503 x4]"], &json!({}));
    let file = world.folder().join("job.json");
    std::fs::write(&file, command.to_string())?;
    let file = file.to_str().expect("a path");
    let first = world.run(&["generate", "--json", "--file", file]).await?;
    assert_exit(&first, 0);
    assert!(complained(&first).contains("tried again in 200ms"), "{}", complained(&first));
    let again = world.run(&["generate", "--json", "--file", file]).await?;
    assert_eq!(printed(&first), printed(&again));
    assert_eq!(world.sandbox.ledger().asked("A shy fox").requests, 5);
    let job_id = command["job_id"].as_str().expect("an id");
    let conflict = world.run(&["generate", "--job-id", job_id, "Another"]).await?;
    assert_exit(&conflict, 64);
    Ok(())
}

#[tokio::test]
async fn submit_waits_for_the_end_and_exits_as_the_job_went() -> Result<()> {
    let world = World::new().await?;
    let _worker = world.worker().await?;
    let good = world.run(&["submit", "--wait", "--project", "5", "A fox", "A bear"]).await?;
    assert_exit(&good, 0);
    assert!(printed(&good).contains("projects/5/assets/image_002.png"), "{}", printed(&good));
    let bad = world.run(&["submit", "--wait", "--json", "A gory battle"]).await?;
    assert_exit(&bad, 1);
    let event = parsed(&bad)?;
    assert_eq!(event["data"]["error"]["code"], "success_rate_too_low");
    let job_id = event["data"]["job_id"].as_str().expect("an id");
    let conflict = world.run(&["submit", "--wait", "--job-id", job_id, "A fox"]).await?;
    assert_exit(&conflict, 1);
    assert!(complained(&conflict).contains("was refused: job_id_conflict"), "{}", complained(&conflict));
    Ok(())
}

#[tokio::test]
async fn submit_without_waiting_leaves_the_command_on_the_queue() -> Result<()> {
    let world = World::new().await?;
    let output = world.run(&["submit", "--json", "A fox"]).await?;
    assert_exit(&output, 0);
    assert_eq!(parsed(&output)?["total"], 1);
    assert_eq!(world.producer().await?.ready("assets.generate").await?, 1);
    let unanswered = world.run(&["submit", "--wait", "--timeout", "100ms", "A bear"]).await?;
    assert_exit(&unanswered, 69);
    assert!(complained(&unanswered).contains("is a worker running?"), "{}", complained(&unanswered));
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_a_command_is_said_before_it_is_submitted() -> Result<()> {
    let world = World::new().await?;
    let output = world.run(&["submit", "--project", "0", "--config", r#"{"steps": 5, "sparkle": 1}"#, "A fox"]).await?;
    assert_exit(&output, 64);
    for part in [
        "project_id: 0 is not allowed",
        "config.steps: 5 is not allowed; a whole number from 10 to 50",
        "config.sparkle: unknown key",
    ] {
        assert!(complained(&output).contains(part), "{}", complained(&output));
    }
    assert_exit(&world.run(&["submit"]).await?, 64);
    assert_exit(&world.run(&["submit", "--config", "{", "A fox"]).await?, 64);
    assert_exit(&world.run(&["submit", "--file", "nowhere.json"]).await?, 64);
    assert_exit(&world.run(&["paint"]).await?, 64);
    assert_exit(&world.run(&["--help"]).await?, 0);
    assert_exit(&world.run(&["--version"]).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_is_exit_69() -> Result<()> {
    let mut world = World::new().await?;
    world.set("AMQP_URL", NOBODY);
    let submit = world.run(&["submit", "A fox"]).await?;
    assert_exit(&submit, 69);
    assert!(complained(&submit).contains("the broker cannot be reached"), "{}", complained(&submit));
    assert!(!complained(&submit).contains("hunter2"), "{}", complained(&submit));
    world.set("DATABASE_URL", "postgres://worker:hunter2@127.0.0.1:1/assets");
    let jobs = world.run(&["jobs", "list"]).await?;
    assert_exit(&jobs, 69);
    assert!(complained(&jobs).contains("the database cannot be reached"), "{}", complained(&jobs));
    assert!(!complained(&jobs).contains("hunter2"), "{}", complained(&jobs));
    Ok(())
}

#[tokio::test]
async fn migrate_brings_both_databases_up_to_date_once() -> Result<()> {
    for database in [Database::Sqlite, Database::Postgres] {
        let world = World::with(database).await?;
        let before = world.run(&["jobs", "list"]).await?;
        assert_exit(&before, 69);
        assert!(complained(&before).contains("asset-worker migrate"), "{}", complained(&before));
        let first = parsed(&world.run(&["migrate", "--json"]).await?)?;
        assert!(first["applied"].as_u64().is_some_and(|applied| applied > 0), "{first}");
        let second = world.run(&["migrate"]).await?;
        assert_exit(&second, 0);
        assert!(printed(&second).contains("up to date"), "{}", printed(&second));
        assert_exit(&world.run(&["jobs", "list"]).await?, 0);
    }
    Ok(())
}

#[tokio::test]
async fn doctor_says_what_is_well_and_what_to_do_where_it_is_not() -> Result<()> {
    let mut world = World::new().await?;
    let well = world.run(&["doctor"]).await?;
    assert_exit(&well, 0);
    for name in ["settings", "broker", "database", "storage", "api"] {
        assert!(printed(&well).lines().any(|line| line.starts_with(&format!("ok      {name}"))), "{}", printed(&well));
    }
    world.set("AMQP_URL", NOBODY);
    world.set("STABILITY_API_KEY", "sk-hunter2");
    let ill = world.run(&["doctor", "--json"]).await?;
    assert_exit(&ill, 69);
    let findings = parsed(&ill)?;
    let of =
        |name: &str| findings.as_array().and_then(|all| all.iter().find(|finding| finding["name"] == name)).cloned();
    let broker = of("broker").expect("a finding");
    assert_eq!(broker["status"], "failed");
    assert!(broker["advice"].as_str().is_some_and(|advice| advice.contains("AMQP_URL")), "{broker}");
    assert_eq!(of("api").expect("a finding")["status"], "failed");
    assert_eq!(of("storage").expect("a finding")["status"], "ok");
    assert!(!printed(&ill).contains("hunter2"), "{}", printed(&ill));
    world.set("IMAGE_STEPS", "5");
    let bad = world.run(&["doctor"]).await?;
    assert_exit(&bad, 64);
    assert!(printed(&bad).contains("IMAGE_STEPS: \"5\" is not allowed"), "{}", printed(&bad));
    Ok(())
}

#[tokio::test]
async fn doctor_finds_a_queue_of_other_arguments_and_a_collector_that_takes_nothing() -> Result<()> {
    let collector = Collector::start().await?;
    let mut world = World::new().await?;
    let found = |output: &Output, name: &str| -> Result<Value> {
        let findings = parsed(output)?;
        let found = findings.as_array().and_then(|findings| findings.iter().find(|finding| finding["name"] == name));
        found.cloned().with_context(|| format!("{name} is not among {findings}"))
    };
    for protocol in ["grpc", "http/protobuf"] {
        world.set("OTEL_EXPORTER_OTLP_PROTOCOL", protocol);
        world.set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.clone());
        let well = world.run(&["doctor", "--json"]).await?;
        assert_exit(&well, 0);
        assert_eq!(found(&well, "telemetry")?["status"], "ok");
        assert_eq!(
            found(&well, "queues")?["message"],
            "0 of 5 are there as they shall be; the next start makes the rest"
        );
        world.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
        let ill = world.run(&["doctor", "--json"]).await?;
        assert_exit(&ill, 69);
        let telemetry = found(&ill, "telemetry")?;
        assert_eq!(telemetry["status"], "failed", "{telemetry}");
        assert!(telemetry["advice"].as_str().is_some_and(|advice| advice.contains("OTEL_EXPORTER_OTLP_ENDPOINT")));
    }
    world.set("OTEL_EXPORTER_OTLP_ENDPOINT", "");
    drop(world.worker().await?);
    let well = world.run(&["doctor", "--json"]).await?;
    assert_eq!(found(&well, "queues")?["message"], "all 5 are there as they shall be");
    let other = World::new().await?;
    other.producer().await?.declare_plainly("assets.generate.dead").await?;
    let ill = other.run(&["doctor", "--json"]).await?;
    assert_exit(&ill, 69);
    let queues = found(&ill, "queues")?;
    assert!(
        queues["message"].as_str().is_some_and(|why| why.contains("assets.generate.dead has other arguments")),
        "{queues}"
    );
    Ok(())
}
