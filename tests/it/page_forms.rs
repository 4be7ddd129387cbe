//! The forms of the pages in a real browser: new jobs, dead letters, the account; without a script and without a mouse.

use anyhow::{Context, Result};
use dev_services::wait::wait_until;
use fantoccini::key::Key;
use integration_tests::{Browser, BrowserOptions, Database, WAIT_TIMEOUT};
use serde_json::{Value, json};

use crate::api::{new_env, wait_for_end};
use crate::pages::{open, run_job};

#[tokio::test]
async fn new_job_is_estimated_and_checked_before_it_is_submitted() -> Result<()> {
    let (env, api, browser) = open(Database::Sqlite).await?;
    browser.goto("/jobs/new").await?;
    browser.run("window.isSamePage = true").await?;
    browser.fill("#project_id", "7").await?;
    browser.fill("#image_descriptions", "A fox\nA bear\n\nA wolf").await?;
    browser.wait_for_text("#estimate", "USD 0.06").await?;
    browser.fill("#max_cost_usd", "0.05").await?;
    browser.wait_for_text("#estimate", "budget_exceeded").await?;
    browser.fill("#max_cost_usd", "lots").await?;
    browser.wait_for_text("#estimate", "config.max_cost_usd: \"lots\" is not allowed").await?;
    assert_eq!(browser.run("return window.isSamePage").await?, true);
    assert_eq!(env.query_rows("SELECT id FROM jobs").await?, Vec::<Value>::new(), "an estimate writes nothing");

    browser.press("Submit job").await?;
    assert!(browser.text("#max_cost_usd-error").await?.contains("lots"), "the field is named");
    let kept = browser
        .run("return document.querySelector('#image_descriptions').value.split(/\\s*\\n\\s*/).join('|')")
        .await?;
    assert_eq!(kept, "A fox|A bear|A wolf", "what was entered is kept");
    browser.fill("#max_cost_usd", "1").await?;
    browser.select("#cache", "never").await?;
    browser.run("document.querySelector('details').open = true").await?;
    browser.fill("#steps", "30").await?;
    browser.press("Submit job").await?;
    assert!(browser.text(".notice.done").await?.contains("submitted"));
    let jobs = api.get("/v1/jobs").await?.json();
    assert_eq!(
        browser.path().await?,
        format!("/jobs/{}?done=submitted", jobs["jobs"][0]["job_id"].as_str().context("an id")?)
    );
    let stored = env.query_rows("SELECT command FROM jobs").await?;
    let command: Value = serde_json::from_str(stored[0]["command"].as_str().context("a command")?)?;
    assert_eq!(command["image_descriptions"], json!(["A fox", "A bear", "A wolf"]));
    assert_eq!(command["config"], json!({"cache": "never", "steps": 30, "max_cost_usd": 1.0}));
    browser.close_allowing(&["status of 422", "htmx:sendAbort", "htmx:afterRequest"]).await
}

#[tokio::test]
async fn form_that_was_sent_before_keeps_what_is_entered() -> Result<()> {
    let (env, _api, browser) = open(Database::Sqlite).await?;
    // By script, which asks for no estimates.
    let enter = async |id: &Value, description: &str| {
        browser.goto("/jobs/new").await?;
        let script = format!(
            "const enter = (name, value) => {{ document.querySelector(`[name=${{name}}]`).value = value; }}; \
             enter('project_id', '7'); enter('image_descriptions', '{description}'); \
             if ({id}) {{ enter('job_id', {id}); }} return document.querySelector('[name=job_id]').value;"
        );
        let id = browser.run(&script).await?;
        browser.press("Submit job").await?;
        anyhow::Ok(id)
    };
    let id = enter(&Value::Null, "A fox").await?;
    enter(&id, "A bear").await?;
    assert!(browser.text(".notice.error").await?.contains("was sent before"));
    browser.press("Submit job").await?;
    assert!(browser.text(".notice.done").await?.contains("submitted"));
    assert_eq!(env.query_rows("SELECT id FROM jobs").await?.len(), 2);
    browser.close_allowing(&["status of 409"]).await
}

#[tokio::test]
async fn dead_letter_is_shown_replayed_and_discarded() -> Result<()> {
    let (env, api, browser) = open(Database::Sqlite).await?;
    let producer = env.connect_broker().await?;
    let worker = env.start_ready_worker().await?;
    producer.publish_bytes(b"{\"job_id\": 1, \"job_id\": 12345678901234567890123}", None).await?;
    producer.publish_bytes(b"not JSON", None).await?;
    wait_until("the dead letters", WAIT_TIMEOUT, async || {
        let letters = api.get("/v1/dead-letters").await.ok()?.json();
        (letters["dead_letters"].as_array()?.len() == 2).then_some(())
    })
    .await?;
    drop(worker);
    browser.goto("/dead-letters").await?;
    browser.click("tbody a.id").await?;
    browser.wait_for_text("h1", "Dead letter").await?;
    assert!(browser.text("dl.facts").await?.contains("invalid_request"));
    // As it was sent: with the key that occurs twice.
    assert_eq!(browser.text("pre").await?, "{\n  \"job_id\": 1,\n  \"job_id\": 12345678901234567890123\n}");
    browser.press("Replay").await?;
    assert_eq!(browser.text(".notice").await?, "Published again: 1.");
    producer.wait_for_waiting_commands(1).await?;
    browser.click("[data-select-all]").await?;
    browser.press("Discard selected").await?;
    assert_eq!(browser.text(".notice").await?, "Deleted: 1.");
    assert!(browser.text("main").await?.contains("There are none on the queue."));
    browser.close().await
}

#[tokio::test]
async fn account_is_paused_and_a_style_set() -> Result<()> {
    let (env, api, browser) = open(Database::Sqlite).await?;
    let _worker = env.start_ready_worker().await?;
    run_job(&api, &["A fox"], json!({})).await?;
    browser.goto("/account").await?;
    browser.fill("#reason", "budget review").await?;
    browser.press("Pause all workers").await?;
    assert!(browser.text("main").await?.contains("budget review"));
    assert_eq!(api.get("/v1/account").await?.json()["gate"]["is_open"], false);
    browser.goto("/jobs").await?;
    assert!(browser.text(".notice.warning").await?.contains("budget review"), "every page says so");
    browser.goto("/account").await?;
    browser.press("Resume").await?;
    assert_eq!(api.get("/v1/account").await?.json()["gate"]["is_open"], true);

    let text = browser.text("main").await?;
    for part in ["Credits\n", "USD 0.02 in 30 days", "stable-diffusion-xl-1024-v1-0 (default)", "resume", "pause"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    assert_eq!(browser.count("svg.chart rect").await?, 30);
    browser.click("#styles summary").await?;
    browser.fill("#project_id", "7").await?;
    browser.fill("#steps", "5").await?;
    browser.press("Set style").await?;
    assert!(browser.text("#steps-error").await?.contains('5'), "the field is named");
    browser.fill("#steps", "30").await?;
    browser.fill("#style_modifiers", "warm\noil painting").await?;
    browser.press("Set style").await?;
    assert!(browser.text("#styles").await?.contains("oil painting"));
    let style = env.query_rows("SELECT style FROM project_styles").await?;
    assert_eq!(
        style[0]["style"].as_str().map(serde_json::from_str::<Value>).transpose()?,
        Some(json!({"style_modifiers": ["warm", "oil painting"], "steps": 30}))
    );
    browser.press("Clear").await?;
    assert_eq!(env.query_rows("SELECT style FROM project_styles").await?, Vec::<Value>::new());
    assert!(browser.text("main").await?.contains("clear_style"), "in the changes");
    browser.close_allowing(&["status of 422"]).await
}

#[tokio::test]
async fn pages_work_without_javascript() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let options = BrowserOptions { without_javascript: true, ..BrowserOptions::default() };
    let browser = Browser::open_with(&api, options).await?;
    browser.goto("/jobs/new").await?;
    browser.fill("#project_id", "7").await?;
    browser.fill("#image_descriptions", "A fox\nA bear").await?;
    browser.press("Estimate").await?;
    assert!(browser.text("#estimate").await?.contains("USD 0.04"));
    browser.press("Submit job").await?;
    assert!(browser.text(".notice.done").await?.contains("submitted"));
    let page = browser.path().await?;
    let _worker = env.start_ready_worker().await?;
    let id = page.trim_start_matches("/jobs/").split('?').next().context("an id")?.to_owned();
    wait_for_end(&api, &id).await?;
    browser.goto(&page).await?;
    assert_eq!(browser.count(".picture.completed").await?, 2);
    assert_eq!(browser.count("[data-select-all]:not([hidden])").await?, 0, "what needs a script is not shown");
    browser.goto("/account").await?;
    browser.press("Pause all workers").await?;
    browser.press("Resume").await?;
    browser.goto("/").await?;
    assert!(browser.text("main").await?.contains("The account gate is open"));
    browser.close().await
}

#[tokio::test]
async fn keyboard_is_enough() -> Result<()> {
    let (_env, api, browser) = open(Database::Sqlite).await?;
    browser.goto("/account").await?;
    let focused = "return document.activeElement.innerText ?? ''";
    for _ in 0..30 {
        browser.press_key(Key::Tab).await?;
        if browser.run(focused).await? == "Pause all workers" {
            break;
        }
    }
    // A visible frame shows where the focus is.
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_eq!(
        (browser.run(focused).await?, browser.run(outline).await?),
        (json!("Pause all workers"), json!("solid"))
    );
    browser.press_key(Key::Enter).await?;
    browser.wait_for_text(".notice.done", "paused").await?;
    assert_eq!(api.get("/v1/account").await?.json()["gate"]["is_open"], false);
    // The first stop of the keyboard leads past the navigation.
    browser.goto("/").await?;
    browser.press_key(Key::Tab).await?;
    assert_eq!(browser.run(focused).await?, "Skip to the content");
    browser.close().await
}
