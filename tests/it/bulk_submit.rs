//! `submit` of a file with one command a line.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use integration_tests::TestEnv;
use serde_json::{Value, json};
use uuid::Uuid;

/// Writes a file of commands into the folder of the environment.
fn write_commands(env: &TestEnv, commands: impl Iterator<Item = Value>) -> Result<PathBuf> {
    let file = env.folder().join("jobs.jsonl");
    std::fs::write(&file, integration_tests::json_lines(commands))?;
    Ok(file)
}

/// Takes all commands from the queue.
async fn take_commands(env: &TestEnv, expected: u32) -> Result<Vec<Value>> {
    let producer = env.connect_broker().await?;
    assert_eq!(producer.ready_count("assets.generate").await?, expected);
    Ok(producer.drain_queue("assets.generate").await?.iter().map(integration_tests::Message::json).collect())
}

#[tokio::test]
async fn interrupted_submission_puts_each_command_on_the_queue_once() -> Result<()> {
    let mut env = TestEnv::new().await?;
    // Every other command has an id of its own.
    let commands = (1..=10_000).map(|number| {
        let mut command = json!({"project_id": number, "image_descriptions": ["A fox"]});
        if number % 2 == 0 {
            command["job_id"] = json!(Uuid::from_u128(number));
        }
        command
    });
    write_commands(&env, commands)?;
    let arguments = ["submit", "--file", "jobs.jsonl", "--priority", "7", "--expires-in", "1h"];
    let go_on = env.folder().join("go-on");
    env.set("ASSET_WORKER_PAUSE_AT", "after_batch");
    env.set("ASSET_WORKER_PAUSE_UNTIL", go_on.display().to_string());
    let mut submission = env.start(&arguments)?;
    submission.wait_for_log("paused at a failpoint").await?;
    let busy = env.run(&arguments).await?;
    assert_eq!(busy.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("another process submits this file"));
    submission.signal(Signal::INT);
    std::fs::write(&go_on, "")?;
    let interrupted = submission.wait_for_exit().await?;
    assert_eq!(interrupted.code(), Some(1), "{}", submission.log());
    assert!(submission.log().contains("repeat this to continue"), "{}", submission.log());
    let first = env.connect_broker().await?.ready_count("assets.generate").await?;
    assert!((1..10_000).contains(&first), "{first} commands were submitted before the interruption");

    let resumed = env.run(&arguments).await?;
    assert_eq!(resumed.status.code(), Some(0), "{}", String::from_utf8_lossy(&resumed.stderr));
    let again = env.run(&[&arguments[..], &["--json"]].concat()).await?;
    assert_eq!(serde_json::from_slice::<Value>(&again.stdout)?["submitted"], 0);
    let commands = take_commands(&env, 10_000).await?;
    let projects: HashSet<i64> = commands.iter().filter_map(|command| command["project_id"].as_i64()).collect();
    assert_eq!(projects.len(), 10_000, "each command is on the queue once");
    let expiries: HashSet<&str> =
        commands.iter().filter_map(|command| command["config"]["expires_at"].as_str()).collect();
    assert_eq!(expiries.len(), 1, "the expiry is that of the first submission");
    for command in &commands {
        let number = command["project_id"].as_i64().context("project_id is missing")?;
        if number % 2 == 0 {
            assert_eq!(command["job_id"], json!(Uuid::from_u128(u128::try_from(number)?)));
        }
    }
    // The journal lists the ids in the order of the lines.
    let journal = std::fs::read_to_string(env.folder().join("jobs.jsonl.submitted"))?;
    let ids: Vec<Value> =
        journal.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("job_id").cloned()).collect();
    assert_eq!(ids.len(), 10_000);
    for command in &commands {
        let number = usize::try_from(command["project_id"].as_i64().unwrap_or_default())?;
        assert_eq!(command["job_id"], ids[number - 1]);
    }
    Ok(())
}

#[tokio::test]
async fn killed_submission_continues_with_the_same_ids() -> Result<()> {
    let mut env = TestEnv::new().await?;
    write_commands(&env, (1..=600).map(|number| json!({"project_id": number, "image_descriptions": ["A fox"]})))?;
    env.set("ASSET_WORKER_PAUSE_AT", "after_batch");
    let mut submission = env.start(&["submit", "--file", "jobs.jsonl"])?;
    submission.kill_at_failpoint("after_batch").await?;
    env.set("ASSET_WORKER_PAUSE_AT", "");
    let resumed = env.run(&["submit", "--file", "jobs.jsonl"]).await?;
    assert_eq!(resumed.status.code(), Some(0), "{}", String::from_utf8_lossy(&resumed.stderr));
    // The first batch was confirmed, but not recorded: its commands are sent again, with the same ids.
    let commands = take_commands(&env, 1_100).await?;
    let ids: HashSet<&str> = commands.iter().filter_map(|command| command["job_id"].as_str()).collect();
    assert_eq!(ids.len(), 600);
    Ok(())
}

#[tokio::test]
async fn expired_commands_are_not_sent_by_a_resumed_submission() -> Result<()> {
    let mut env = TestEnv::new().await?;
    write_commands(&env, (1..=600).map(|number| json!({"project_id": number, "image_descriptions": ["A fox"]})))?;
    env.set("ASSET_WORKER_PAUSE_AT", "after_batch");
    let arguments = ["submit", "--file", "jobs.jsonl", "--expires-in", "0s"];
    let mut submission = env.start(&arguments)?;
    submission.kill_at_failpoint("after_batch").await?;
    let refused = env.run(&arguments).await?;
    assert_eq!(refused.status.code(), Some(64));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("the other commands have expired"), "{error}");
    take_commands(&env, 500).await?;
    Ok(())
}

#[tokio::test]
async fn invalid_lines_are_named_before_anything_is_sent() -> Result<()> {
    let env = TestEnv::new().await?;
    let id = Uuid::now_v7();
    let file = env.folder().join("jobs.jsonl");
    let lines = [
        json!({"job_id": id, "project_id": 1, "image_descriptions": ["A"]}).to_string(),
        String::new(),
        json!({"project_id": 0, "image_descriptions": ["A"], "config": {"steps": 3}}).to_string(),
        "{".to_owned(),
        json!({"job_id": id, "project_id": 1, "image_descriptions": ["A"]}).to_string(),
    ];
    std::fs::write(&file, lines.join("\n"))?;
    let refused = env.run(&["submit", "--file", "jobs.jsonl", "--seed", "x"]).await?;
    assert_eq!(refused.status.code(), Some(64));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    for part in [
        "line 1: config.seed: \"x\" is not allowed",
        "line 3: project_id: 0 is not allowed",
        "config.steps: 3 is not allowed",
        "line 4: body: not JSON",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let refused = env.run(&["submit", "--file", "jobs.jsonl"]).await?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains(&format!("line 5: job_id: {id} is also the id of line 1")), "{error}");
    assert!(env.queue_names().await?.is_empty(), "nothing was declared or sent");
    assert!(!env.folder().join("jobs.jsonl.submitted").exists());

    std::fs::write(&file, &lines[0])?;
    assert_eq!(env.run(&["submit", "--file", "jobs.jsonl"]).await?.status.code(), Some(0));
    for (changed, flag) in [(lines[0].clone(), "9"), (format!("{}\n\n", lines[0]), "")] {
        std::fs::write(&file, changed)?;
        let flags: &[&str] = if flag.is_empty() { &[] } else { &["--priority", flag] };
        let refused = env.run(&[&["submit", "--file", "jobs.jsonl"], flags].concat()).await?;
        assert_eq!(refused.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs to another submission"));
    }
    for unknown in ["notes\n", "{\"confirmed\": 1}\n"] {
        std::fs::write(env.folder().join("jobs.jsonl.submitted"), unknown)?;
        let refused = env.run(&["submit", "--file", "jobs.jsonl"]).await?;
        assert_eq!(refused.status.code(), Some(64));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("is not a journal of this program"));
    }
    let waiting = env.run(&["submit", "--wait", "--file", "jobs.jsonl"]).await?;
    assert!(String::from_utf8_lossy(&waiting.stderr).contains("--wait: not allowed"));
    let generated = env.run(&["generate", "--file", "jobs.jsonl"]).await?;
    assert!(String::from_utf8_lossy(&generated.stderr).contains("only one command is allowed"));
    Ok(())
}
