//! Seeds, styles of projects, and the length of prompts.

use std::process::Output;

use anyhow::{Context, Result};
use integration_tests::{Database, TestEnv, command, failure_codes, metadata};
use serde_json::{Value, json};

fn seeds(data: &Value) -> Vec<u64> {
    let assets = data["assets"].as_array().map(Vec::as_slice).unwrap_or_default();
    assets.iter().map(|asset| asset["seed"].as_u64().unwrap_or_default()).collect()
}

fn checksums(data: &Value) -> Vec<Value> {
    data["assets"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|asset| asset["sha256"].clone())
        .collect()
}

#[tokio::test]
async fn job_seed_is_incremented_for_each_image() -> Result<()> {
    let env = TestEnv::new().await?;
    let config = json!({"seed": 4_294_967_294_u32, "cache": "never"});
    let descriptions = ["A fox", "A fox", "A fox"];
    let first = env.generate(&command(1, &descriptions, &config)).await?.expect_data("completed")?;
    assert_eq!(
        seeds(&first),
        [4_294_967_294, 4_294_967_295, 1],
        "the last seed is followed by 1, because 0 means no seed"
    );
    let config = json!({"seed": 7, "cache": "never"});
    let once = env.generate(&command(1, &descriptions, &config)).await?.expect_data("completed")?;
    assert_eq!(seeds(&once), [7, 8, 9]);
    let rows = env.query_rows(r#"SELECT metadata FROM assets WHERE "index" = 3"#).await?;
    assert!(rows.iter().any(|row| metadata(row)["asked_seed"] == 9), "{rows:?}");
    // Without a seed the API chooses one, which is recorded.
    let free = env.generate(&command(1, &["A fox", "A fox"], &json!({}))).await?.expect_data("completed")?;
    assert!(seeds(&free)[0] != seeds(&free)[1] && !seeds(&free).contains(&0), "{free}");
    Ok(())
}

#[tokio::test]
async fn same_job_with_same_seed_produces_identical_pixels() -> Result<()> {
    let env = TestEnv::new().await?;
    let pixels = |data: &Value| -> Result<Vec<Vec<u8>>> {
        let assets = data["assets"].as_array().context("assets is missing")?;
        let read = |asset: &Value| {
            let path = env.stored_path(asset["file_path"].as_str().unwrap_or_default());
            Ok(image::load_from_memory(&std::fs::read(path)?)?.into_bytes())
        };
        assets.iter().map(read).collect()
    };
    let config = json!({"seed": 7, "cache": "never"});
    let once = env.generate(&command(1, &["A fox", "A fox"], &config)).await?.expect_data("completed")?;
    let again = env.generate(&command(1, &["A fox", "A fox"], &config)).await?.expect_data("completed")?;
    assert_eq!(pixels(&once)?, pixels(&again)?);
    assert_ne!(pixels(&once)?[0], pixels(&once)?[1]);
    // The files still differ: each embeds the metadata of its own job.
    assert_ne!(checksums(&once), checksums(&again));
    Ok(())
}

#[track_caller]
fn expect_exit_code(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[tokio::test]
async fn project_style_is_stored_shown_applied_and_cleared_on_sqlite() -> Result<()> {
    project_style_is_stored_shown_applied_and_cleared(Database::Sqlite).await
}

#[tokio::test]
async fn project_style_is_stored_shown_applied_and_cleared_on_postgres() -> Result<()> {
    project_style_is_stored_shown_applied_and_cleared(Database::Postgres).await
}

async fn project_style_is_stored_shown_applied_and_cleared(database: Database) -> Result<()> {
    let env = TestEnv::with_database(database).await?;
    expect_exit_code(&env.run(&["migrate"]).await?, 0);
    let set = ["style", "set", "--project", "42", "--modifier", "watercolour", "--modifier", "soft light"];
    let more = ["--negative-prompt", "people", "--style-preset", "anime", "--cfg-scale", "6.5", "--steps", "20"];
    let shown = expect_exit_code(&env.run(&[&set[..], &more[..]].concat()).await?, 0);
    assert!(shown.contains("watercolour, soft light") && shown.contains("6.5"), "{shown}");
    let kept: Value = serde_json::from_slice(&env.run(&["style", "show", "--project", "42", "--json"]).await?.stdout)?;
    let expected = json!({
        "style_modifiers": ["watercolour", "soft light"], "negative_prompt": "people", "style_preset": "anime",
        "cfg_scale": 6.5, "steps": 20,
    });
    assert_eq!(kept, expected);

    let made = async |project: i64, config: &Value| -> Result<Value> {
        let done = env.generate(&command(project, &["A fox"], config)).await?.expect_data("completed")?;
        let id = done["job_id"].as_str().unwrap_or_default().to_owned();
        let job: Value = serde_json::from_slice(&env.run(&["jobs", "show", &id, "--json"]).await?.stdout)?;
        Ok(job["assets"][0]["metadata"].clone())
    };
    let looks = |metadata: &Value| {
        ["prompt", "negative_prompt", "style_preset", "cfg_scale", "steps"].map(|key| metadata[key].clone())
    };
    let styled = json!(["A fox, watercolour, soft light", "people", "anime", 6.5, 20]);
    assert_eq!(json!(looks(&made(42, &json!({})).await?)), styled);
    // Values of the command take precedence, also an empty list.
    let config = json!({"style_modifiers": [], "steps": 30});
    assert_eq!(json!(looks(&made(42, &config).await?)), json!(["A fox", "people", "anime", 6.5, 30]));
    // Another project has its own style or none.
    let plain = looks(&made(7, &json!({})).await?);
    assert!(plain[0].as_str().unwrap_or_default().starts_with("A fox, cinematic lighting, "), "{plain:?}");
    assert_eq!((&plain[2], &plain[3], &plain[4]), (&json!(null), &json!(8.0), &json!(40)));

    // A new style replaces the previous one completely.
    expect_exit_code(&env.run(&["style", "set", "--project", "42", "--no-modifiers"]).await?, 0);
    let bare = looks(&made(42, &json!({})).await?);
    assert_eq!((&bare[0], &bare[2]), (&json!("A fox"), &json!(null)));
    assert!(
        expect_exit_code(&env.run(&["style", "clear", "--project", "42"]).await?, 0).contains("no longer has a style")
    );
    assert!(expect_exit_code(&env.run(&["style", "clear", "--project", "42"]).await?, 0).contains("had no style"));
    assert!(expect_exit_code(&env.run(&["style", "show", "--project", "42"]).await?, 0).contains("(default)"));
    Ok(())
}

#[tokio::test]
async fn invalid_project_style_is_refused_with_field_names() -> Result<()> {
    let env = TestEnv::new().await?;
    expect_exit_code(&env.run(&["migrate"]).await?, 0);
    let refused = ["style", "set", "--project", "42", "--style-preset", "oil", "--steps", "5"];
    let text = expect_exit_code(&env.run(&refused).await?, 64);
    assert!(
        text.contains("style_preset: \"oil\" is not allowed") && text.contains("steps: 5 is not allowed"),
        "{text}"
    );
    expect_exit_code(&env.run(&["style", "set", "--project", "42"]).await?, 64);
    expect_exit_code(&env.run(&["style", "set", "--project", "0", "--steps", "20"]).await?, 64);
    assert_eq!(env.query_rows("SELECT * FROM project_styles").await?, [] as [Value; 0]);
    Ok(())
}

#[tokio::test]
async fn started_job_keeps_its_original_style() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_JOB_RETRY_DELAYS", "1s");
    expect_exit_code(&env.run(&["migrate"]).await?, 0);
    expect_exit_code(&env.run(&["style", "set", "--project", "42", "--modifier", "watercolour"]).await?, 0);
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let descriptions = ["A fox", "A bear [fault:status=503 x4]"];
    producer.publish(&command(42, &descriptions, &json!({"min_success_rate": 1.0}))).await?;
    worker.wait_for_log("job will be retried after a delay").await?;
    expect_exit_code(&env.run(&["style", "set", "--project", "42", "--modifier", "oil on canvas"]).await?, 0);
    let data = events.wait_for_data("completed").await?;
    for (asset, animal) in data["assets"].as_array().context("assets is missing")?.iter().zip(descriptions) {
        assert_eq!(asset["prompt"], format!("{animal}, watercolour"));
    }
    Ok(())
}

#[tokio::test]
async fn too_long_prompt_is_shortened_and_logged() -> Result<()> {
    let env = TestEnv::new().await?;
    let long = "x".repeat(1_980);
    let config = json!({"style_modifiers": ["warm light", "4K", "4k", "grainy film"], "min_success_rate": 0.5});
    let done = env.generate(&command(1, &[&long, "A fox"], &config)).await?;
    assert!(done.log.contains("the prompt was shortened"), "{}", done.log);
    let data = done.expect_data("completed")?;
    assert_eq!(data["assets"][0]["prompt"], format!("{long}, warm light, 4K"));
    assert_eq!(data["assets"][1]["prompt"], "A fox, warm light, 4K, grainy film");
    let rows = env.query_rows(r#"SELECT metadata FROM assets ORDER BY "index""#).await?;
    assert_eq!(metadata(&rows[0])["left_out"], json!(["grainy film"]));
    assert_eq!(metadata(&rows[1])["left_out"], json!(null));
    Ok(())
}

#[tokio::test]
async fn too_long_translated_description_fails_its_image() -> Result<()> {
    let mut env = TestEnv::new().await?;
    // Short in Chinese, long in English.
    env.write_phrase_book(&json!({"長": "long ".repeat(500)}))?;
    let done = env.generate(&command(1, &["A fox", "長"], &json!({"min_success_rate": 0.5}))).await?;
    let data = done.expect_data("completed")?;
    assert_eq!(failure_codes(&data), ["rejected_request"]);
    let message = data["failures"][0]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("image_descriptions[1]: 2499 characters in English is not allowed"), "{message}");
    assert_eq!(env.sandbox.ledger().requests, 1);
    Ok(())
}
