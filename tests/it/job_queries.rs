//! `jobs list`, `jobs show --watch`, flags for the config, completions and man pages.

use anyhow::{Context, Result};
use integration_tests::{TestEnv, command};
use serde_json::{Value, json};

/// Runs a command that succeeds and returns its standard output.
async fn run(env: &TestEnv, arguments: &[&str]) -> Result<String> {
    let output = env.run(arguments).await?;
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn jobs_are_listed_by_status_project_and_time() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    env.generate(&command(2, &["A gory battle"], &json!({}))).await?.expect_data("failed")?;
    env.generate(&command(2, &["A bear"], &json!({}))).await?.expect_data("completed")?;
    env.execute("UPDATE jobs SET created_at = '2020-01-01T00:00:00Z' WHERE project_id = 1").await?;
    let projects = async |arguments: &[&str]| -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&run(&env, &[&["jobs", "list", "--json"], arguments].concat()).await?)?;
        let jobs = list.as_array().context("not a list")?;
        Ok(jobs.iter().map(|job| job["project_id"].clone()).collect())
    };
    assert_eq!(projects(&[]).await?, [2, 2, 1]);
    assert_eq!(projects(&["--status", "completed"]).await?, [2, 1]);
    assert_eq!(projects(&["--status", "failed", "--project", "2"]).await?, [2]);
    assert_eq!(projects(&["--status", "failed", "--project", "1"]).await?, Vec::<i64>::new());
    assert_eq!(projects(&["--since", "1h"]).await?, [2, 2]);
    assert_eq!(projects(&["--since", "1h", "--limit", "1"]).await?, [2]);
    assert_eq!(env.run(&["jobs", "list", "--status", "lost"]).await?.status.code(), Some(64));
    Ok(())
}

#[tokio::test]
async fn watched_job_is_shown_until_its_end() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    let (_worker, producer, _events) = env.start_worker_and_events().await?;
    for (description, code) in [("A fox", 0), ("A gory battle", 1)] {
        let job = command(1, &[description], &json!({}));
        let job_id = job["job_id"].as_str().context("job_id is missing")?;
        let mut watch = env.start(&["jobs", "show", "--watch", "--json", job_id])?;
        watch.wait_for_log("is not in the database yet; waiting for it").await?;
        producer.publish(&job).await?;
        assert_eq!(watch.wait_for_exit().await?.code(), Some(code), "{}", watch.log());
        let log = watch.log();
        let last = log.lines().rfind(|line| line.starts_with('{')).context("no line of JSON")?;
        let last: Value = serde_json::from_str(last)?;
        assert_eq!((&last["job_id"], &last["finished_at"].is_string()), (&json!(job_id), &true));
        // A job that has ended is shown once.
        let again = env.run(&["jobs", "show", "--watch", job_id]).await?;
        assert_eq!(again.status.code(), Some(code));
        assert_eq!(String::from_utf8_lossy(&again.stdout).matches("of project 1").count(), 1);
    }
    Ok(())
}

#[tokio::test]
async fn flags_set_the_keys_of_config() -> Result<()> {
    let env = TestEnv::new().await?;
    let flags = [
        "--engine",
        "core",
        "--upscaler",
        "lanczos",
        "--style-preset",
        "anime",
        "--negative-prompt",
        "text",
        "--modifier",
        "watercolour",
        "--modifier",
        "soft light",
        "--seed",
        "7",
        "--cache",
        "never",
        "--max-cost",
        "1.5",
        "--min-success-rate",
        "0.5",
    ];
    run(
        &env,
        &[&["submit", "--priority", "9"], &flags[..], &["--config", r#"{"seed": 1, "steps": 20}"#, "A fox"]].concat(),
    )
    .await?;
    // Of a file too; other keys stay.
    let file = env.folder().join("job.json");
    std::fs::write(
        &file,
        json!({"project_id": 1, "image_descriptions": ["A fox"], "config": {"seed": 1, "steps": 20}}).to_string(),
    )?;
    run(&env, &[&["submit", "--file", "job.json"], &flags[..]].concat()).await?;
    let expected = json!({
        "engine": "core", "upscaler": "lanczos", "style_preset": "anime", "negative_prompt": "text",
        "style_modifiers": ["watercolour", "soft light"], "seed": 7, "cache": "never", "max_cost_usd": 1.5,
        "min_success_rate": 0.5, "steps": 20,
    });
    let messages = env.connect_broker().await?.take_messages("assets.generate", 2).await?;
    for message in &messages {
        assert_eq!(message.json()["config"], expected);
        let job_id = message.json()["job_id"].as_str().context("job_id is missing")?.to_owned();
        assert_eq!(message.properties().message_id().as_ref().map(ToString::to_string), Some(job_id));
        assert!(message.is_persistent() && message.properties().timestamp().is_some());
    }
    assert_eq!(messages.iter().map(|message| *message.properties().priority()).collect::<Vec<_>>(), [Some(9), None]);

    for (flag, value, allowed) in [
        ("--engine", "sdxl", "config.engine: \"sdxl\" is not allowed; one of"),
        ("--seed", "-1", "config.seed: -1 is not allowed; a whole number from 0 to 4294967295"),
        ("--seed", "seven", "config.seed: \"seven\" is not allowed"),
        ("--max-cost", "NaN", "config.max_cost_usd: \"NaN\" is not allowed; a number from 0 to 1000000"),
        ("--min-success-rate", "80", "config.min_success_rate: 80 is not allowed; a number from 0 to 1"),
        ("--cache", "always", "config.cache: \"always\" is not allowed; never, on_failure or prefer"),
    ] {
        for subcommand in ["submit", "generate", "estimate"] {
            let refused = env.run(&[subcommand, flag, value, "A fox"]).await?;
            assert_eq!(refused.status.code(), Some(64));
            let error = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(error.contains(allowed), "{error}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn completions_and_man_pages_cover_all_subcommands() -> Result<()> {
    let mut env = TestEnv::new().await?;
    // They need no settings.
    env.set("WORKER_LEASE", "bad");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run(&env, &["completions", shell]).await?;
        assert!(script.contains("dead-letters") && script.contains("older-than"), "{shell}");
    }
    assert_eq!(env.run(&["completions", "cmd"]).await?.status.code(), Some(64));
    let folder = env.folder().join("man1");
    let folder = folder.to_str().context("the path is UTF-8")?;
    assert_eq!(env.run(&["man", folder]).await?.status.code(), Some(64), "the directory does not exist");
    std::fs::create_dir(folder)?;
    run(&env, &["man", folder]).await?;
    for (page, text) in [
        ("asset-worker.1", "purge"),
        ("asset-worker-purge.1", "older\\-than"),
        ("asset-worker-storage-verify.1", "json"),
    ] {
        let page = std::fs::read_to_string(format!("{folder}/{page}"))?;
        assert!(page.starts_with(".ie") && page.contains(text), "{page}");
    }
    Ok(())
}
