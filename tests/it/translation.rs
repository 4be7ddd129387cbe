//! Translation of Chinese descriptions.

use anyhow::Result;
use gemini_sandbox::Fault;
use integration_tests::{Database, TestEnv, assert_files, command, failure_codes, metadata};
use serde_json::{Value, json};

/// Asserts that all prompts sent to Stability's API are ASCII.
#[track_caller]
fn assert_english_only(env: &TestEnv) {
    for prompt in env.sandbox.ledger().by_prompt.keys() {
        assert!(prompt.is_ascii(), "{prompt}");
    }
}

fn prompts(data: &Value) -> Vec<&str> {
    let assets = data["assets"].as_array().map(Vec::as_slice).unwrap_or_default();
    assets.iter().map(|asset| asset["prompt"].as_str().unwrap_or_default()).collect()
}

#[tokio::test]
async fn test_5_chinese_is_translated_before_prompt_composition_on_sqlite() -> Result<()> {
    chinese_is_translated_before_prompt_composition(Database::Sqlite).await
}

#[tokio::test]
async fn test_5_chinese_is_translated_before_prompt_composition_on_postgres() -> Result<()> {
    chinese_is_translated_before_prompt_composition(Database::Postgres).await
}

/// Test 5: Traditional and Simplified Chinese, and Chinese mixed with English, by phrase book and by Gemini.
async fn chinese_is_translated_before_prompt_composition(database: Database) -> Result<()> {
    let mut env = TestEnv::with_database(database).await?;
    let gemini = env.start_gemini().await?;
    env.write_phrase_book(&json!({"一隻狐狸": "A red fox of the book"}))?;
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let modifiers = json!([
        "cinematic lighting",
        "professional photography",
        "4k quality",
        "highly detailed",
        "photorealistic",
        "電影感"
    ]);
    let config = json!({"style_modifiers": modifiers, "negative_prompt": "模糊, text"});
    let descriptions = ["一座寧靜的山景", "一隻狐狸", "平静的海滩 at dusk", "A plain fox"];
    producer.publish(&command(1, &descriptions, &config)).await?;
    let data = events.wait_for_data("completed").await?;
    assert_files(&env, &data, &[1, 2, 3, 4])?;
    let rest = "cinematic lighting, professional photography, 4k quality, highly detailed, photorealistic, cinematic";
    let english = ["A serene mountain landscape", "A red fox of the book", "A peaceful beach at dusk", "A plain fox"];
    assert_eq!(prompts(&data), english.map(|english| format!("{english}, {rest}")));
    assert_english_only(&env);
    // One request for all texts that the phrase book does not contain.
    let asked = gemini.ledger().texts;
    assert_eq!(asked, [["一座寧靜的山景", "平静的海滩 at dusk", "電影感", "模糊, text"].map(str::to_owned).to_vec()]);
    let rows = env.query_rows(r#"SELECT metadata FROM assets ORDER BY "index""#).await?;
    let texts = |row: &Value| {
        let metadata = metadata(row);
        (metadata["description"].clone(), metadata["english"].clone())
    };
    assert_eq!(texts(&rows[0]), (json!("一座寧靜的山景"), json!("A serene mountain landscape")));
    assert_eq!(texts(&rows[1]), (json!("一隻狐狸"), json!("A red fox of the book")));
    assert_eq!(texts(&rows[3]), (json!("A plain fox"), json!(null)));
    assert_eq!(metadata(&rows[0])["negative_prompt"], "blurry, text");
    assert_eq!(data["assets"][0]["description"], "一座寧靜的山景");

    // No text is translated twice.
    producer.publish(&command(1, &["一座寧靜的山景", "繁忙的城市街道"], &config)).await?;
    events.wait_for_data("completed").await?;
    assert_eq!(gemini.ledger().texts[1], ["繁忙的城市街道"]);
    Ok(())
}

#[tokio::test]
async fn generate_translates_chinese_descriptions() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let gemini = env.start_gemini().await?;
    let done = env.generate(&command(1, &["一座宁静的山景", "雨後的老街"], &json!({"style_modifiers": []}))).await?;
    let data = done.expect_data("completed")?;
    assert_eq!(prompts(&data), ["A serene mountain landscape", "An old street after the rain"]);
    assert_eq!(gemini.ledger().requests, 1);
    Ok(())
}

#[tokio::test]
async fn untranslated_description_fails_its_image_and_is_never_sent() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.write_phrase_book(&json!({"一隻狐狸": "A fox"}))?;
    let descriptions = ["一隻狐狸", "一隻熊", "A bear"];
    let done = env.generate(&command(1, &descriptions, &json!({"min_success_rate": 0.6}))).await?;
    let data = done.expect_data("completed")?;
    assert_files(&env, &data, &[1, 3])?;
    assert_eq!(failure_codes(&data), ["translation_unavailable"]);
    let message = data["failures"][0]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("image_descriptions[1]: ") && message.contains("GEMINI_API_KEY"), "{message}");
    assert_eq!(env.sandbox.ledger().requests, 2);
    assert_english_only(&env);
    Ok(())
}

#[tokio::test]
async fn other_scripts_are_translated_or_fail_their_image() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.make_images_small();
    env.write_phrase_book(&json!({"Спокойный лис.": "A calm fox."}))?;
    let descriptions = ["Спокойный лис.", "منظر جبلي هادئ", "ภูเขา", "Café"];
    let config = json!({"min_success_rate": 0.5, "style_modifiers": ["4k"]});
    let data = env.generate(&command(1, &descriptions, &config)).await?.expect_data("completed")?;
    assert_eq!(prompts(&data), ["A calm fox, 4k", "Café, 4k"]);
    assert_eq!(failure_codes(&data), ["translation_unavailable"; 2]);
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}

#[tokio::test]
async fn unreachable_translator_is_retried_in_the_next_attempt() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let gemini = env.start_gemini().await?;
    // As many requests as one attempt sends: the first and three retries.
    gemini.inject_fault(Fault::Status(503), 4);
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A bear", "一隻狐狸"], &json!({"min_success_rate": 1.0}))).await?;
    let data = events.wait_for_data("completed").await?;
    assert_files(&env, &data, &[1, 2])?;
    assert_eq!(gemini.ledger().requests, 5);
    let ledger = env.sandbox.ledger();
    assert_eq!(
        (ledger.requests, ledger.charged),
        (2, 2),
        "the image that needed no translation was generated only once"
    );
    Ok(())
}

#[tokio::test]
async fn blocked_text_fails_only_its_own_image() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _gemini = env.start_gemini().await?;
    let descriptions = ["一隻狐狸", "熊 [gemini:blocked]", "平靜的海灘", "雨後的老街", "繁忙的城市街道"];
    let done = env.generate(&command(1, &descriptions, &json!({}))).await?;
    let data = done.expect_data("completed")?;
    assert_files(&env, &data, &[1, 3, 4, 5])?;
    assert_eq!(failure_codes(&data), ["translation_unavailable"]);
    let message = data["failures"][0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("PROHIBITED_CONTENT"), "{message}");
    Ok(())
}

#[tokio::test]
async fn refused_gemini_key_fails_without_retries_and_never_leaks() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let gemini = env.start_gemini().await?;
    env.set("GEMINI_API_KEY", "gm-hunter2-is-wrong");
    let done = env.generate(&command(1, &["一隻狐狸"], &json!({}))).await?;
    assert!(!done.log.contains("hunter2"), "{}", done.log);
    let data = done.expect_data("failed")?;
    assert_eq!(failure_codes(&data), ["translation_unavailable"]);
    assert!(!data.to_string().contains("hunter2"), "{data}");
    assert_eq!((gemini.ledger().requests, env.sandbox.ledger().requests), (1, 0));
    let doctor = env.run(&["doctor"]).await?;
    let printed = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(printed.contains("FAILED  translation") && printed.contains("check GEMINI_API_KEY"), "{printed}");
    assert!(!printed.contains("hunter2"), "{printed}");
    Ok(())
}

#[tokio::test]
async fn gemini_key_replaced_in_its_file_is_used_by_the_next_job() -> Result<()> {
    let mut env = TestEnv::new().await?;
    let _gemini = env.start_gemini().await?;
    let file = env.folder().join("gemini-api-key");
    std::fs::write(&file, "gm-wrong")?;
    env.set("GEMINI_API_KEY", "");
    env.set("GEMINI_API_KEY_FILE", file.display().to_string());
    let _worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["一隻狐狸"], &json!({}))).await?;
    assert_eq!(failure_codes(&events.wait_for_data("failed").await?), ["translation_unavailable"]);
    std::fs::write(&file, "gm-sandbox")?;
    producer.publish(&command(1, &["一隻狐狸"], &json!({}))).await?;
    events.wait_for_data("completed").await?;
    Ok(())
}

#[tokio::test]
async fn invalid_phrase_book_prevents_the_start() -> Result<()> {
    let mut env = TestEnv::new().await?;
    env.write_phrase_book(&json!({"一隻狐狸": "狐狸"}))?;
    let refused = env.run(&["run"]).await?;
    assert_eq!(refused.status.code(), Some(64));
    let printed = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        printed.contains("TRANSLATION_PHRASE_BOOK: ") && printed.contains("\"一隻狐狸\": \"狐狸\" is not allowed"),
        "{printed}"
    );
    Ok(())
}
