//! The pages of `asset-worker serve` in a real browser, screen by screen.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait::wait_until;
use integration_tests::{ApiClient, ApiServer, Browser, Database, TestEnv, WAIT_TIMEOUT};
use serde_json::{Value, json};
use zip::ZipArchive;

use crate::api::{new_env, submit, wait_for_end};

/// An environment with a server, and its browser.
pub(crate) async fn open(database: Database) -> Result<(TestEnv, ApiServer, Browser)> {
    let env = new_env(database).await?;
    let api = env.start_api().await?;
    let browser = Browser::open(&api).await?;
    Ok((env, api, browser))
}

/// The ids of the jobs in the list, as the links show them.
async fn listed_jobs(browser: &Browser) -> Result<BTreeSet<String>> {
    let ids =
        browser.run("return [...document.querySelectorAll('tbody a.id')].map((a) => a.pathname.slice(6))").await?;
    let ids = ids.as_array().context("a list")?.iter().filter_map(Value::as_str).map(str::to_owned);
    Ok(ids.collect())
}

fn set<const N: usize>(ids: [&String; N]) -> BTreeSet<String> {
    ids.into_iter().cloned().collect()
}

/// Runs a job to its end.
pub(crate) async fn run_job(api: &ApiClient, descriptions: &[&str], config: Value) -> Result<String> {
    let id = submit(api, descriptions, config).await?;
    wait_for_end(api, &id).await?;
    Ok(id)
}

async fn overview_shows_workers_money_and_failures(database: Database) -> Result<()> {
    let mut env = new_env(database).await?;
    env.set("WORKER_DAILY_BUDGET_USD", "5");
    let api = env.start_api().await?;
    let browser = Browser::open(&api).await?;
    let mut worker = env.start_ready_worker().await?;
    let id = run_job(&api, &["A fox", "A gory battle"], json!({"min_success_rate": 0.5})).await?;
    browser.goto("/").await?;
    browser.wait_for_text("#live", "Success rate\n50.0 %").await?;
    let text = browser.text("#live").await?;
    for part in ["The account gate is open", "Workers\n1\n", "of USD 5.00", "alive", "1 in 24 hours"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    // A link that has the focus keeps it, and the part around it is not replaced meanwhile.
    browser
        .run("document.querySelector('#live').dataset.isFirst = true; document.querySelector('#live a').focus()")
        .await?;
    let loaded = "return performance.getEntriesByType('resource').filter((entry) => entry.initiatorType === 'xmlhttprequest').length";
    wait_until("an update", WAIT_TIMEOUT, async || (browser.run(loaded).await.ok()?.as_u64()? > 0).then_some(()))
        .await?;
    let is_first = "#live[data-is-first] a:focus";
    assert_eq!(browser.count(is_first).await?, 1);
    browser.run("document.activeElement.blur()").await?;
    // It shows changes by itself: nothing loads the page again.
    browser.run("window.isSamePage = true").await?;
    worker.signal(Signal::KILL);
    worker.wait_for_exit().await?;
    env.execute("UPDATE workers SET seen_at_ms = seen_at_ms - 60000").await?;
    browser.wait_for_text("#live", "lost").await?;
    browser.wait_for_text("#live", "Workers\n0\n").await?;
    // A worker that stops is not lost.
    let stopped = env.start_ready_worker().await?;
    wait_until("its heartbeat", WAIT_TIMEOUT, async || {
        (env.query_rows("SELECT id FROM workers").await.ok()?.len() == 2).then_some(())
    })
    .await?;
    drop(stopped);
    assert_eq!(env.query_rows("SELECT id FROM workers").await?.len(), 1);
    assert_eq!(api.post("/v1/account/pause", &json!({"reason": "maintenance"})).await?.status, 200);
    browser.wait_for_text("#live .notice", "maintenance").await?;
    assert_eq!(browser.run("return window.isSamePage").await?, true);

    // A failure leads to the jobs that have it.
    browser.click("a[href='/jobs?failure=content_policy']").await?;
    browser.wait_for_text("h1", "Jobs").await?;
    assert_eq!(listed_jobs(&browser).await?, set([&id]));
    browser.close().await
}

#[tokio::test]
async fn overview_shows_workers_money_and_failures_with_sqlite() -> Result<()> {
    overview_shows_workers_money_and_failures(Database::Sqlite).await
}

#[tokio::test]
async fn overview_shows_workers_money_and_failures_with_postgres() -> Result<()> {
    overview_shows_workers_money_and_failures(Database::Postgres).await
}

#[tokio::test]
async fn job_fills_while_it_is_watched() -> Result<()> {
    let (env, api, browser) = open(Database::Sqlite).await?;
    let id =
        submit(&api, &["A fox", "一座寧靜的山景，晨霧", "A gory battle"], json!({"min_success_rate": 0.3})).await?;
    browser.goto(&format!("/jobs/{id}")).await?;
    assert_eq!(browser.count(".placeholder").await?, 3);
    assert_eq!(browser.text("p[data-events]").await?, "Changes are shown as they happen.");
    assert!(browser.text("dl.facts").await?.contains("waiting"));
    browser.run("window.isSamePage = true").await?;
    browser.fill("#reason", "typed before the job starts").await?;
    let mut env = env;
    env.write_phrase_book(&json!({"一座寧靜的山景，晨霧": "A serene mountain landscape"}))?;
    let _worker = env.start_ready_worker().await?;
    // The form is replaced only when it has no use any more; what is typed stays until then.
    browser.wait_for_text("dl.facts", "completed\n").await?;
    let grid = browser.wait_for_text(".pictures", "content_policy").await?;
    for part in [
        "1. A fox",
        "A serene mountain landscape",
        "stable-diffusion-xl-1024-v1-0",
        "generated",
        "requests: 1",
        "USD 0.02",
        "Change the description",
    ] {
        assert!(grid.contains(part), "{part:?} is missing in {grid}");
    }
    assert_eq!(browser.run("return window.isSamePage").await?, true, "nothing loaded the page again");
    let loaded = "return [...document.querySelectorAll('.pictures img')].filter((img) => img.complete && img.naturalWidth > 0).length";
    wait_until("the pictures", WAIT_TIMEOUT, async || (browser.run(loaded).await.ok()? == 2).then_some(())).await?;
    // It listens no longer.
    let is_listening = "p[data-events]:not([hidden])";
    let has_ended = async || (browser.count(is_listening).await.ok()? == 0).then_some(());
    wait_until("the end of the stream", WAIT_TIMEOUT, has_ended).await?;
    let timeline = browser.text(".timeline").await?;
    for part in ["attempt 1 started on ", "image 1 completed", "image 3 failed: content_policy", "job completed"] {
        assert!(timeline.contains(part), "{part:?} is missing in {timeline}");
    }
    browser.click("details summary").await?;
    let shown: Value = serde_json::from_str(&browser.text("details pre").await?)?;
    let stored = env.query_rows("SELECT terminal_event FROM jobs").await?;
    assert_eq!(Some(shown), stored[0]["terminal_event"].as_str().map(serde_json::from_str).transpose()?);
    browser.close().await
}

async fn jobs_are_found_cancelled_and_retried(database: Database) -> Result<()> {
    let (env, api, browser) = open(database).await?;
    let worker = env.start_ready_worker().await?;
    let failed = run_job(&api, &["A bear [fault:status=500 x2]", "Zebras at dawn"], json!({})).await?;
    let done = run_job(&api, &["A fox"], json!({})).await?;
    drop(worker);
    let (first, second) = (submit(&api, &["A wolf"], json!({})).await?, submit(&api, &["A lynx"], json!({})).await?);
    browser.goto("/jobs").await?;
    assert_eq!(listed_jobs(&browser).await?, set([&failed, &done, &first, &second]));
    let find = async |css: &str, text: &str| -> Result<BTreeSet<String>> {
        browser.goto("/jobs").await?;
        if css.starts_with("#status") || css.starts_with("#failure") {
            browser.select(css, text).await?;
        } else {
            browser.fill(css, text).await?;
        }
        browser.press("Find").await?;
        listed_jobs(&browser).await
    };
    assert_eq!(find("#status", "waiting").await?, set([&first, &second]));
    assert_eq!(find("#failure", "provider_unavailable").await?, set([&failed]));
    assert_eq!(find("#failure", "success_rate_too_low").await?, set([&failed]));
    assert_eq!(find("#project", "8").await?, set([]));
    assert_eq!(find("#job", &done).await?, set([&done]));
    assert_eq!(find("#description", "Zebras a").await?, set([&failed]));
    assert_eq!(find("#description", "at dawn").await?, set([]), "not in the middle of a description");
    assert_eq!(find("#job", "no-id").await?, set([]));
    assert!(browser.text("#job-error").await?.contains("no-id"), "the field is named");

    // All that a filter shows are cancelled; the filter stays.
    find("#status", "waiting").await?;
    browser.click("[data-select-all]").await?;
    browser.press("Cancel selected").await?;
    assert_eq!(browser.text(".notice").await?, "Cancelled: 2. Ended or cancelled before: 0.");
    assert!(browser.path().await?.starts_with("/jobs?status=waiting&"));
    assert_eq!(wait_for_end(&api, &first).await?["error_code"], "cancelled");

    browser.goto("/jobs").await?;
    browser.click(&format!("input[value='{failed}']")).await?;
    browser.click(&format!("input[value='{done}']")).await?;
    browser.press("Retry failed images of selected").await?;
    assert_eq!(browser.text(".notice").await?, "New jobs: 1. Without images to make again: 1.");
    let audit = env.query_rows("SELECT action FROM audit WHERE action IN ('cancel', 'retry')").await?;
    assert_eq!(audit.len(), 4);
    browser.press("Cancel selected").await?;
    assert!(browser.text(".notice").await?.contains("none is selected"));
    // The answer to a wrong form has the status of an error, which the log of the browser repeats.
    browser.close_allowing(&["status of 422"]).await
}

#[tokio::test]
async fn jobs_are_found_cancelled_and_retried_with_sqlite() -> Result<()> {
    jobs_are_found_cancelled_and_retried(Database::Sqlite).await
}

#[tokio::test]
async fn jobs_are_found_cancelled_and_retried_with_postgres() -> Result<()> {
    jobs_are_found_cancelled_and_retried(Database::Postgres).await
}

#[tokio::test]
async fn job_is_cancelled_and_retried_on_its_page() -> Result<()> {
    let (env, api, browser) = open(Database::Sqlite).await?;
    let id = submit(&api, &["A bear"], json!({})).await?;
    browser.goto(&format!("/jobs/{id}")).await?;
    browser.fill("#reason", "no <longer> wanted").await?;
    browser.press("Cancel job").await?;
    assert!(browser.text(".notice.done").await?.contains("is cancelled"));
    browser.wait_for_text(".timeline", "cancelled: no <longer> wanted").await?;
    browser.wait_for_text("#live .notice.error", "cancelled").await?;
    let _worker = env.start_ready_worker().await?;
    browser.goto(&format!("/jobs/{id}")).await?;
    browser.press("Retry failed images").await?;
    let facts = browser.text("dl.facts").await?;
    assert!(facts.contains("Makes images again of"), "{facts}");
    browser.wait_for_text("dl.facts", "completed\n").await?;
    browser.goto(&format!("/jobs/{id}")).await?;
    assert!(browser.text("dl.facts").await?.contains("Made again by"));
    browser.close().await
}

#[tokio::test]
async fn pictures_are_downloaded_as_a_zip_file() -> Result<()> {
    let (env, api, browser) = open(Database::Sqlite).await?;
    let _worker = env.start_ready_worker().await?;
    let id = run_job(&api, &["A fox", "A bear", "A wolf"], json!({})).await?;
    let gone = env.stored_path("projects/7/assets/image_002.png");
    let kept = std::fs::read(env.stored_path("projects/7/assets/image_003.png"))?;
    std::fs::remove_file(gone)?;
    browser.goto(&format!("/jobs/{id}")).await?;
    browser.click("a.button").await?;
    let file = browser.wait_for_download(&format!("images-{id}.zip")).await?;
    let mut archive = ZipArchive::new(File::open(file)?)?;
    let names: BTreeSet<String> = archive.file_names().map(|name| Ok(name?.into_owned())).collect::<Result<_>>()?;
    let expected = ["image_001.png", "image_003.png", "job.json", "missing.txt"].map(str::to_owned);
    assert_eq!(names, BTreeSet::from(expected));
    let mut read = |name: &str| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // Reading to the end checks the checksum.
        archive.by_name(name)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    image::load_from_memory(&read("image_001.png")?)?;
    assert_eq!(read("image_003.png")?, kept);
    assert_eq!(read("missing.txt")?, b"projects/7/assets/image_002.png\n");
    let job: Value = serde_json::from_slice(&read("job.json")?)?;
    assert_eq!(job["job_id"], json!(id));
    // The browser reports the copy of the file that is gone.
    browser.close_allowing(&["images/2?width="]).await
}

#[tokio::test]
async fn picture_shows_who_used_it_and_is_made_again() -> Result<()> {
    let (env, api, browser) = open(Database::Postgres).await?;
    let _worker = env.start_ready_worker().await?;
    let id = run_job(&api, &["A fox"], json!({"seed": 7})).await?;
    let copied = run_job(&api, &["A fox"], json!({"seed": 7, "cache": "prefer"})).await?;
    browser.goto(&format!("/jobs/{id}")).await?;
    browser.click(".picture a").await?;
    browser.wait_for_text("h1", "Image 1").await?;
    let text = browser.text("main").await?;
    for part in ["A fox, ", "SHA-256", "Cost\nUSD 0.02", "seed\n7", "projects/7/assets/image_001.png"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    let width = browser.run("return document.querySelector('.full img').naturalWidth").await?;
    assert_eq!(env.query_rows("SELECT DISTINCT width FROM assets").await?, [json!({"width": width})]);
    assert_eq!(browser.count(&format!("a[href='/jobs/{copied}/images/1']")).await?, 1);
    browser.goto(&format!("/jobs/{copied}/images/1")).await?;
    assert!(browser.text("main").await?.contains("Generated for job"));
    assert_eq!(browser.count(&format!("a[href='/jobs/{id}/images/1']")).await?, 1);
    browser.goto(&format!("/jobs/{id}/images/1")).await?;
    browser.fill("#seed", "4294967296").await?;
    browser.press("Make it again with another seed").await?;
    assert!(browser.text(".notice").await?.contains("seed"));
    browser.goto(&format!("/jobs/{id}/images/1")).await?;
    browser.fill("#seed", "8").await?;
    browser.press("Make it again with another seed").await?;
    browser.wait_for_text(".pictures", "seed 8 ").await?;
    browser.close_allowing(&["status of 422"]).await
}
