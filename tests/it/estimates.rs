//! Estimates, compared with what jobs cost when they run.

use anyhow::{Context, Result};
use integration_tests::{Database, TestEnv, command, json_lines};
use serde_json::{Value, json};

/// Estimates a command.
async fn estimate(env: &TestEnv, command: &Value) -> Result<Value> {
    let output = env.run(&["estimate", "--json", "--file", &write_job(env, command)?]).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).context(error)
}

/// Writes a command into the folder of the environment and returns the path.
fn write_job(env: &TestEnv, command: &Value) -> Result<String> {
    let file = env.folder().join("job.json");
    std::fs::write(&file, command.to_string())?;
    Ok(file.display().to_string())
}

fn warning_codes(estimate: &Value) -> Vec<&str> {
    let warnings = estimate["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    warnings.iter().filter_map(|warning| warning["code"].as_str()).collect()
}

/// A command of one of three projects with a random config. Descriptions are few, so that the cache is hit.
fn random_command(random: &mut fastrand::Rng) -> Value {
    const DESCRIPTIONS: [&str; 7] =
        ["A fox", "A bear", "An owl", "A lighthouse", "一座寧靜的山景", "阿里山的日出", "!!!"];
    let descriptions: Vec<&str> =
        (0..random.usize(1..=5)).map(|_| DESCRIPTIONS[random.usize(..DESCRIPTIONS.len())]).collect();
    let mut config = json!({});
    let mut choose = |key: &str, values: &[Value]| {
        let choice = random.usize(..=values.len());
        if let Some(value) = values.get(choice) {
            config[key] = value.clone();
        }
    };
    choose("cache", &[json!("never"), json!("on_failure"), json!("prefer"), json!("prefer"), json!("prefer")]);
    choose("upscaler", &[json!("lanczos"), json!("fast")]);
    choose("engine", &[json!("stable-diffusion-xl-1024-v1-0"), json!("sd3.5-flash")]);
    choose("seed", &[json!(0), json!(7)]);
    choose("style_modifiers", &[json!([]), json!(["水彩"])]);
    choose("max_cost_usd", &[json!(0.05), json!(5.0), json!(5.0)]);
    choose("min_success_rate", &[json!(0.0), json!(1.0)]);
    choose("expires_at", &[Value::Null, Value::Null, Value::Null, Value::Null, json!("2020-01-01T00:00:00Z")]);
    command(random.i64(1..=3), &descriptions, &config)
}

#[tokio::test]
async fn estimate_is_within_one_image_of_the_cost_of_random_jobs() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.make_images_small();
    env.write_phrase_book(&json!({"一座寧靜的山景": "A serene mountain landscape"}))?;
    let _gemini = env.start_gemini().await?;
    env.set("STABILITY_RATE_LIMIT", "100000");
    let (_worker, producer, mut events) = env.start_worker_and_events().await?;
    let set = env.run(&["style", "set", "--project", "3", "--negative-prompt", "模糊", "--steps", "20"]).await?;
    assert_eq!(set.status.code(), Some(0));
    let mut random = fastrand::Rng::with_seed(25);
    let (mut cached, mut stopped) = (0, 0);
    for number in 1..=100 {
        let command = random_command(&mut random);
        let estimate = estimate(&env, &command).await?;
        producer.publish(&command).await?;
        let data = loop {
            let event = events.next().await?;
            if event.event_type().ends_with("completed") || event.event_type().ends_with("failed") {
                break event.json()["data"].clone();
            }
        };
        let context = format!("job {number}: {command}\n{estimate}\n{data}");
        let value = |of: &Value, key: &str| of[key].as_f64().with_context(|| format!("{key}; {context}"));
        let (cost, expected) = (value(&data, "cost_usd")?, value(&estimate, "cost_usd")?);
        assert!((cost - expected).abs() <= value(&estimate, "price_per_image_usd")? + 1e-9, "{context}");
        let assets = data["assets"].as_array().with_context(|| context.clone())?;
        let generated = assets.iter().filter(|asset| asset["origin"] == "generated").count();
        assert!(
            generated.abs_diff(usize::try_from(estimate["to_generate"].as_u64().unwrap_or(999))?) <= 1,
            "{context}"
        );
        assert_eq!(estimate["unknown"], json!([]), "{context}");
        cached += data["from_cache"].as_u64().unwrap_or_default();
        stopped += u32::from(data["error"].is_object());
    }
    // The jobs differ enough to be a test.
    assert!(cached > 20 && stopped > 10, "{cached} images from the cache, {stopped} failed jobs");
    Ok(())
}

#[tokio::test]
async fn estimate_without_services_is_null_and_exits_0() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("AMQP_URL", "amqp://guest:hunter2@127.0.0.1:1/%2f");
    env.set("DATABASE_URL", "postgres://worker:hunter2@127.0.0.1:1/assets");
    let command = command(1, &["A fox", "一座寧靜的山景"], &json!({"cache": "prefer", "min_success_rate": 0.5}));
    let unknown = estimate(&env, &command).await?;
    for key in ["completed", "cached", "to_generate", "cost_usd"] {
        assert_eq!(unknown[key], Value::Null, "{key} of {unknown}");
    }
    assert_eq!(unknown["translation"], json!({"texts": 1, "known": null}));
    assert_eq!(unknown["duration"]["waiting_seconds"], Value::Null);
    assert_eq!(unknown["images"], 2);
    assert_eq!(warning_codes(&unknown), Vec::<&str>::new());
    assert_eq!(unknown["unknown"].as_array().map(Vec::len), Some(3), "{unknown}");
    assert!(!unknown.to_string().contains("hunter2"), "{unknown}");
    // Whether the text can be translated is not known, and so it does not count as failed.
    let untranslated = json!({"job_id": command["job_id"], "project_id": 1, "image_descriptions": ["一座寧靜的山景"]});
    let untranslated = estimate(&env, &untranslated).await?;
    assert_eq!((&untranslated["to_generate"], &untranslated["cost_usd"]), (&Value::Null, &Value::Null));
    assert_eq!(warning_codes(&untranslated), Vec::<&str>::new());
    // Without the cache, the price is known.
    let output = env.run(&["estimate", "--upscaler", "fast", "--cache", "never", "A fox", "A bear"]).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("cost            USD 0.08"), "{text}");
    assert!(text.contains("waits           unknown"), "{text}");
    // Nothing was created.
    assert!(!env.folder().join("data").exists());
    Ok(())
}

#[tokio::test]
async fn estimate_warns_of_what_would_stop_the_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_DAILY_BUDGET_USD", "0.05");
    env.set("STABILITY_CHECK_BALANCE", "true");
    let done = command(1, &["A fox"], &json!({}));
    env.generate(&done).await?.expect_data("completed")?;

    let within = estimate(&env, &command(1, &["A bear"], &json!({}))).await?;
    assert_eq!(warning_codes(&within), ["no_worker"], "{within}");
    assert_eq!(within["budget"], json!({"limit_usd": 0.05, "spent_usd": 0.02, "left_usd": 0.03}));
    assert_eq!(within["duration"]["measured_jobs"], 1);
    let over = estimate(&env, &command(1, &["A bear", "An owl"], &json!({}))).await?;
    assert_eq!(warning_codes(&over), ["no_worker", "daily_budget_short"]);
    assert!(over["warnings"][1]["message"].as_str().is_some_and(|text| text.contains("for 1 of 2 images")), "{over}");

    let check = async |command: Value, code: &str| -> Result<()> {
        let stopped = estimate(&env, &command).await?;
        assert_eq!(warning_codes(&stopped).first(), Some(&code), "{stopped}");
        assert_eq!((&stopped["cost_usd"], &stopped["to_generate"]), (&json!(0.0), &json!(0)));
        Ok(())
    };
    check(done.clone(), "already_ended").await?;
    let mut other = command(1, &["Another"], &json!({}));
    other["job_id"] = done["job_id"].clone();
    check(other, "job_id_conflict").await?;
    check(command(1, &["A bear"], &json!({"max_cost_usd": 0.01})), "budget_exceeded").await?;
    check(command(1, &["A bear"], &json!({"expires_at": "2020-01-01T00:00:00Z"})), "expired").await?;
    let cancelled = command(1, &["A bear"], &json!({}));
    let job_id = cancelled["job_id"].as_str().context("job_id is missing")?;
    assert_eq!(env.run(&["jobs", "cancel", job_id]).await?.status.code(), Some(0));
    check(cancelled.clone(), "cancelled").await?;
    env.sandbox.set_credits(1.0);
    check(command(1, &["A bear"], &json!({})), "insufficient_credits").await?;
    env.sandbox.set_credits(1_000.0);

    // A job that has spent something: the limit is checked before each further request.
    let partial = command(1, &["A bear", "An owl", "A wolf"], &json!({"max_cost_usd": 0.07}));
    env.set("WORKER_DAILY_BUDGET_USD", "5");
    env.generate(&partial).await?.expect_data("completed")?;
    let unfinished = "status = 'waiting', terminal_event = NULL, cost_usd = 0.04";
    env.execute(&format!("UPDATE jobs SET {unfinished} WHERE total = 3")).await?;
    env.execute("UPDATE assets SET status = 'pending' WHERE \"index\" > 1").await?;
    let partial = estimate(&env, &partial).await?;
    assert_eq!((&partial["to_generate"], &partial["cost_usd"]), (&json!(1), &json!(0.02)), "{partial}");
    assert_eq!(warning_codes(&partial)[0], "budget_exceeded");
    // What the engine refuses is known before the text is translated.
    let _gemini = env.start_gemini().await?;
    let refused = command(1, &["狐狸"], &json!({"engine": "core", "steps": 20}));
    let refused = estimate(&env, &refused).await?;
    assert_eq!(warning_codes(&refused)[0], "success_rate_too_low", "{refused}");

    assert_eq!(env.run(&["pause", "--reason", "invoice overdue"]).await?.status.code(), Some(0));
    let paused = estimate(&env, &command(1, &["A bear"], &json!({}))).await?;
    assert_eq!(warning_codes(&paused), ["paused"]);
    assert_eq!(paused["duration"]["waiting_seconds"], Value::Null);
    let shown = env.run(&["submit", "--dry-run", "A bear"]).await?;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("warning: paused: the account gate is closed"));
    assert_eq!(env.sandbox.ledger().charged, 4, "estimates are free");
    Ok(())
}

#[tokio::test]
async fn estimate_of_many_commands_is_their_sum() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.set("WORKER_DAILY_BUDGET_USD", "0.05");
    env.generate(&command(1, &["A fox"], &json!({}))).await?.expect_data("completed")?;
    let prefer = json!({"cache": "prefer"});
    let commands = [command(1, &["A fox", "A bear"], &prefer), command(2, &["An owl", "A cat"], &json!({}))];
    std::fs::write(env.folder().join("jobs.jsonl"), json_lines(commands.into_iter()))?;
    let output = env.run(&["submit", "--dry-run", "--json", "--file", "jobs.jsonl"]).await?;
    let total: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&total["commands"], &total["images"], &total["cached"]), (&json!(2), &json!(4), &json!(1)));
    assert_eq!((&total["to_generate"], &total["cost_usd"]), (&json!(3), &json!(0.06)));
    assert_eq!(warning_codes(&total), ["no_worker", "daily_budget_short"]);
    assert!(env.queue_names().await?.is_empty(), "nothing was declared or sent");
    Ok(())
}
