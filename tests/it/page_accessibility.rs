//! The pages under axe, which finds what keeps people with disabilities from using them.

use anyhow::{Context, Result};
use dev_services::node;
use integration_tests::{ApiServer, Browser, BrowserOptions, Database, TestEnv};
use serde_json::{Value, json};

use crate::api::{new_env, submit, wait_for_end};

/// An environment in which every page shows something: pictures, failures, dead letters, a closed gate.
async fn open() -> Result<(TestEnv, ApiServer, Vec<String>)> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let worker = env.start_ready_worker().await?;
    let id = submit(&api, &["A fox", "A gory battle"], json!({"min_success_rate": 0.5})).await?;
    wait_for_end(&api, &id).await?;
    drop(worker);
    let waiting = submit(&api, &["A wolf"], json!({})).await?;
    env.connect_broker().await?.publish_dead_letter(b"{\"job_id\": 1}").await?;
    api.post("/v1/account/pause", &json!({"reason": "maintenance"})).await?;
    env.execute(
        "INSERT INTO project_styles (project_id, style, updated_at) VALUES (7, '{\"steps\": 30}', '2026-11-27T10:00:00Z')",
    )
    .await?;
    let letters = api.get("/v1/dead-letters").await?.json();
    let letter = letters["dead_letters"][0]["id"].as_str().context("a dead letter")?.to_owned();
    let pages = vec![
        "/".to_owned(),
        "/jobs".to_owned(),
        "/jobs?job=wrong".to_owned(),
        format!("/jobs/{id}"),
        format!("/jobs/{waiting}"),
        format!("/jobs/{id}/images/1"),
        "/jobs/new".to_owned(),
        "/dead-letters".to_owned(),
        format!("/dead-letters/{letter}"),
        "/account".to_owned(),
        "/jobs/no-such-job".to_owned(),
    ];
    Ok((env, api, pages))
}

/// What axe finds on the page: violations of WCAG A and AA, each with its elements.
async fn violations(browser: &Browser, axe: &str) -> Result<Vec<String>> {
    browser.run(axe).await?;
    let script = "const done = arguments[arguments.length - 1]; \
        axe.run(document, {resultTypes: ['violations']}).then((result) => done(result.violations), (error) => done([{id: String(error)}]));";
    let found: Value = browser.client().execute_async(script, Vec::new()).await?;
    let found = found.as_array().context("a list of violations")?;
    // Also those of moderate and minor impact.
    Ok(found.iter().map(|violation| format!("{}: {}", violation["id"], violation["nodes"][0]["html"])).collect())
}

#[tokio::test]
async fn axe_finds_no_violation() -> Result<()> {
    let install = || node::environment("axe", &["axe-core@4.14.1"]);
    let packages = tokio::task::spawn_blocking(install).await??;
    let axe = std::fs::read_to_string(packages.join("node_modules/axe-core/axe.min.js"))?;
    let (_env, api, pages) = open().await?;
    let light = BrowserOptions::default();
    for options in [light, BrowserOptions { is_dark: true, is_narrow: true, ..light }] {
        let browser = Browser::open_with(&api, options).await?;
        for page in &pages {
            browser.goto(page).await?;
            assert_ne!(browser.text("h1").await?, "Service Unavailable", "{page}");
            browser.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })").await?;
            assert_eq!(violations(&browser, &axe).await?, Vec::<String>::new(), "{page} {options:?}");
            // A page that is wider than the window has to be moved in two directions.
            let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(browser.run(overflow).await?, 0, "{page} {options:?}");
        }
        let scheme = browser.run("return matchMedia('(prefers-color-scheme: dark)').matches").await?;
        assert_eq!(scheme, options.is_dark);
        // A wrong filter, and a job whose id is none.
        browser.close_allowing(&["status of 422"]).await?;
    }
    Ok(())
}
