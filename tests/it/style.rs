//! What the images of a job share, and what a project keeps.

use std::process::Output;

use anyhow::{Context, Result};
use integration_tests::{Database, World, codes, command, metadata};
use serde_json::{Value, json};

fn seeds(data: &Value) -> Vec<u64> {
    let assets = data["assets"].as_array().map(Vec::as_slice).unwrap_or_default();
    assets.iter().map(|asset| asset["seed"].as_u64().unwrap_or_default()).collect()
}

fn sums(data: &Value) -> Vec<Value> {
    data["assets"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|asset| asset["sha256"].clone())
        .collect()
}

#[tokio::test]
async fn a_seed_makes_pictures_that_differ_and_a_job_that_can_be_repeated_exactly() -> Result<()> {
    let world = World::new().await?;
    let config = json!({"seed": 4_294_967_294_u32, "cache": "never"});
    let descriptions = ["A fox", "A fox", "A fox"];
    let first = world.generate(&command(1, &descriptions, &config)).await?.data_of("completed")?;
    assert_eq!(seeds(&first), [4_294_967_294, 4_294_967_295, 1], "after the last seed comes 1: 0 would be none");
    let config = json!({"seed": 7, "cache": "never"});
    let once = world.generate(&command(1, &descriptions, &config)).await?.data_of("completed")?;
    assert_eq!(seeds(&once), [7, 8, 9]);
    let rows = world.rows(r#"SELECT metadata FROM assets WHERE "index" = 3"#).await?;
    assert!(rows.iter().any(|row| metadata(row)["asked_seed"] == 9), "{rows:?}");
    // Without a seed the API chooses one, which is recorded.
    let free = world.generate(&command(1, &["A fox", "A fox"], &json!({}))).await?.data_of("completed")?;
    assert!(seeds(&free)[0] != seeds(&free)[1] && !seeds(&free).contains(&0), "{free}");
    Ok(())
}

#[tokio::test]
async fn the_same_job_with_the_same_seed_paints_the_same_pixels() -> Result<()> {
    let world = World::new().await?;
    let pixels = |data: &Value| -> Result<Vec<Vec<u8>>> {
        let assets = data["assets"].as_array().context("a list")?;
        let read = |asset: &Value| {
            let path = world.file(asset["file_path"].as_str().unwrap_or_default());
            Ok(image::load_from_memory(&std::fs::read(path)?)?.into_bytes())
        };
        assets.iter().map(read).collect()
    };
    let config = json!({"seed": 7, "cache": "never"});
    let once = world.generate(&command(1, &["A fox", "A fox"], &config)).await?.data_of("completed")?;
    let again = world.generate(&command(1, &["A fox", "A fox"], &config)).await?.data_of("completed")?;
    assert_eq!(pixels(&once)?, pixels(&again)?);
    assert_ne!(pixels(&once)?[0], pixels(&once)?[1]);
    // The files differ all the same: each says whose it is.
    assert_ne!(sums(&once), sums(&again));
    Ok(())
}

#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[tokio::test]
async fn a_projects_style_is_kept_shown_used_and_forgotten_on_sqlite() -> Result<()> {
    a_projects_style_is_kept_shown_used_and_forgotten(Database::Sqlite).await
}

#[tokio::test]
async fn a_projects_style_is_kept_shown_used_and_forgotten_on_postgres() -> Result<()> {
    a_projects_style_is_kept_shown_used_and_forgotten(Database::Postgres).await
}

async fn a_projects_style_is_kept_shown_used_and_forgotten(database: Database) -> Result<()> {
    let world = World::with(database).await?;
    said(&world.run(&["migrate"]).await?, 0);
    let set = ["style", "set", "--project", "42", "--modifier", "watercolour", "--modifier", "soft light"];
    let more = ["--negative-prompt", "people", "--style-preset", "anime", "--cfg-scale", "6.5", "--steps", "20"];
    let shown = said(&world.run(&[&set[..], &more[..]].concat()).await?, 0);
    assert!(shown.contains("watercolour, soft light") && shown.contains("6.5"), "{shown}");
    let kept: Value =
        serde_json::from_slice(&world.run(&["style", "show", "--project", "42", "--json"]).await?.stdout)?;
    let expected = json!({
        "style_modifiers": ["watercolour", "soft light"], "negative_prompt": "people", "style_preset": "anime",
        "cfg_scale": 6.5, "steps": 20,
    });
    assert_eq!(kept, expected);

    let made = async |project: i64, config: &Value| -> Result<Value> {
        let done = world.generate(&command(project, &["A fox"], config)).await?.data_of("completed")?;
        let id = done["job_id"].as_str().unwrap_or_default().to_owned();
        let job: Value = serde_json::from_slice(&world.run(&["jobs", "show", &id, "--json"]).await?.stdout)?;
        Ok(job["assets"][0]["metadata"].clone())
    };
    let looks = |metadata: &Value| {
        ["prompt", "negative_prompt", "style_preset", "cfg_scale", "steps"].map(|key| metadata[key].clone())
    };
    let styled = json!(["A fox, watercolour, soft light", "people", "anime", 6.5, 20]);
    assert_eq!(json!(looks(&made(42, &json!({})).await?)), styled);
    // What the command says wins, also where it says none.
    let config = json!({"style_modifiers": [], "steps": 30});
    assert_eq!(json!(looks(&made(42, &config).await?)), json!(["A fox", "people", "anime", 6.5, 30]));
    // Another project has its own, or none.
    let plain = looks(&made(7, &json!({})).await?);
    assert!(plain[0].as_str().unwrap_or_default().starts_with("A fox, cinematic lighting, "), "{plain:?}");
    assert_eq!((&plain[2], &plain[3], &plain[4]), (&json!(null), &json!(8.0), &json!(40)));

    // A style that is set takes the place of the one before, whole.
    said(&world.run(&["style", "set", "--project", "42", "--no-modifiers"]).await?, 0);
    let bare = looks(&made(42, &json!({})).await?);
    assert_eq!((&bare[0], &bare[2]), (&json!("A fox"), &json!(null)));
    assert!(said(&world.run(&["style", "clear", "--project", "42"]).await?, 0).contains("keeps no style any more"));
    assert!(said(&world.run(&["style", "clear", "--project", "42"]).await?, 0).contains("kept no style"));
    assert!(said(&world.run(&["style", "show", "--project", "42"]).await?, 0).contains("(default)"));
    Ok(())
}

#[tokio::test]
async fn a_style_that_cannot_be_kept_is_refused_by_name() -> Result<()> {
    let world = World::new().await?;
    said(&world.run(&["migrate"]).await?, 0);
    let refused = ["style", "set", "--project", "42", "--style-preset", "oil", "--steps", "5"];
    let text = said(&world.run(&refused).await?, 64);
    assert!(
        text.contains("style_preset: \"oil\" is not allowed") && text.contains("steps: 5 is not allowed"),
        "{text}"
    );
    said(&world.run(&["style", "set", "--project", "42"]).await?, 64);
    said(&world.run(&["style", "set", "--project", "0", "--steps", "20"]).await?, 64);
    assert_eq!(world.rows("SELECT * FROM project_styles").await?, [] as [Value; 0]);
    Ok(())
}

#[tokio::test]
async fn a_job_that_has_begun_keeps_the_style_it_began_with() -> Result<()> {
    let mut world = World::new().await?;
    world.set("WORKER_JOB_RETRY_DELAYS", "1s");
    said(&world.run(&["migrate"]).await?, 0);
    said(&world.run(&["style", "set", "--project", "42", "--modifier", "watercolour"]).await?, 0);
    let worker = world.worker().await?;
    let producer = world.producer().await?;
    let mut events = producer.events().await?;
    let descriptions = ["A fox", "A bear [fault:status=503 x4]"];
    producer.publish(&command(42, &descriptions, &json!({"min_success_rate": 1.0}))).await?;
    worker.has_logged("the job is tried again later").await?;
    said(&world.run(&["style", "set", "--project", "42", "--modifier", "oil on canvas"]).await?, 0);
    let data = events.data_of("completed").await?;
    for (asset, animal) in data["assets"].as_array().context("a list")?.iter().zip(descriptions) {
        assert_eq!(asset["prompt"], format!("{animal}, watercolour"));
    }
    Ok(())
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_shortened_and_says_so() -> Result<()> {
    let world = World::new().await?;
    let long = "x".repeat(1_980);
    let config = json!({"style_modifiers": ["warm light", "4K", "4k", "grainy film"], "min_success_rate": 0.5});
    let done = world.generate(&command(1, &[&long, "A fox"], &config)).await?;
    assert!(done.log.contains("the prompt was shortened"), "{}", done.log);
    let data = done.data_of("completed")?;
    assert_eq!(data["assets"][0]["prompt"], format!("{long}, warm light, 4K"));
    assert_eq!(data["assets"][1]["prompt"], "A fox, warm light, 4K, grainy film");
    let rows = world.rows(r#"SELECT metadata FROM assets ORDER BY "index""#).await?;
    assert_eq!(metadata(&rows[0])["left_out"], json!(["grainy film"]));
    assert_eq!(metadata(&rows[1])["left_out"], json!(null));
    Ok(())
}

#[tokio::test]
async fn a_description_that_cannot_fit_is_refused_by_name() -> Result<()> {
    let mut world = World::new().await?;
    // Short in Chinese, long in English.
    world.phrase_book(&json!({"長": "long ".repeat(500)}))?;
    let done = world.generate(&command(1, &["A fox", "長"], &json!({"min_success_rate": 0.5}))).await?;
    let data = done.data_of("completed")?;
    assert_eq!(codes(&data), ["rejected_request"]);
    let message = data["failures"][0]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("image_descriptions[1]: 2499 characters in English is not allowed"), "{message}");
    assert_eq!(world.sandbox.ledger().requests, 1);
    Ok(())
}
