//! What an older version has written, what a former holder writes, and the quota of two processes.

use domain::command::{Command, JobConfig};
use domain::event::{Context, Event, Totals};
use domain::failure::ImageFailureCode;
use domain::money::MicroUsd;
use domain::outcome::{ImageFailure, ImageState};
use domain::style::Style;
use migrations::{Migrator, MigratorTrait};
use sea_orm::ConnectionTrait;

use super::*;

/// Rows as version 0.1 with its first migration wrote them: one image finished, one not.
#[tokio::test]
async fn a_job_that_an_older_version_began_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/old.db?mode=rwc", folder.path().display());
    let store = Store::connect(&SecretString::from(url)).await.expect("a database");
    Migrator::up(&store.db, Some(1)).await.expect("the first migration");
    let command = Command {
        job_id: uuid::Uuid::from_u128(7),
        project_id: 42,
        image_descriptions: vec!["A fox".into(), "A bear".into()],
        config: JobConfig { steps: Some(30), ..JobConfig::default() },
    };
    let body = serde_json::to_string(&command).expect("JSON");
    let digest = domain::digest::sha256(&body);
    let id = |number: u128| format!("X'{}'", uuid::Uuid::from_u128(number).simple());
    let now = "2026-11-24 10:00:00+00:00";
    let metadata =
        r#"{"description":"A fox","index":1,"prompt":"A fox, 4k","seed":7,"origin":"generated","uri":"file:///a.png"}"#;
    let rows = [
        format!(
            "INSERT INTO jobs (id, project_id, status, digest, command, total, attempts, cost_usd, created_at, updated_at) \
             VALUES ({}, 42, 'running', '{digest}', '{body}', 2, 1, 0.02, '{now}', '{now}')",
            id(7)
        ),
        format!(
            r#"INSERT INTO assets (id, project_id, job_id, "index", type, status, file_path, metadata, format, width, height, size_bytes, sha256, requests, charged, created_at, updated_at)
             VALUES ({}, 42, {}, 1, 'image', 'completed', 'a.png', '{metadata}', 'png', 1920, 1080, 3, 'abc', 1, 1, '{now}', '{now}')"#,
            id(1),
            id(7)
        ),
        format!(
            r#"INSERT INTO assets (id, project_id, job_id, "index", type, status, metadata, error_code, error_message, requests, charged, created_at, updated_at)
             VALUES ({}, 42, {}, 2, 'image', 'failed', '{{"description":"A bear","index":2}}', 'timeout', 'late', 4, 4, '{now}', '{now}')"#,
            id(2),
            id(7)
        ),
    ];
    for row in rows {
        store.db.execute_unprepared(&row).await.expect("a row");
    }
    assert!(store.migrate().await.expect("the other migrations") > 0);

    let usual_style = Style { steps: Some(40), ..Style::default() };
    let terms = ClaimTerms { lease: Duration::from_secs(12), usual_style: &usual_style };
    let Claim::Run(claimed) = store.claim(&command, None, terms).await.expect("an answer") else {
        panic!("it is there to be worked on")
    };
    assert_eq!((claimed.first, claimed.attempts, claimed.lease.token), (false, 1, 1));
    assert_eq!(claimed.style.steps, Some(30), "what its command says");
    let ImageState::Completed(asset) = &claimed.images[0].state else { panic!("it is finished") };
    assert_eq!((asset.recipe.prompt.as_str(), asset.seed), ("A fox, 4k", 7));
    let ImageState::Failed(failure) = &claimed.images[1].state else { panic!("it failed") };
    assert!(failure.may_pass, "a time-out may pass");
    assert_eq!((claimed.images[1].requests, claimed.images[1].charged), (4, 4));
    // Somebody else finds it held.
    assert!(matches!(store.claim(&command, None, terms).await.expect("an answer"), Claim::Leased));
}

/// Whatever the holder of an older claim writes has no effect, and says so.
#[tokio::test]
async fn a_former_holder_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display());
    let store = Store::connect(&SecretString::from(url)).await.expect("a database");
    store.migrate().await.expect("the migrations");
    let command = Command {
        job_id: uuid::Uuid::from_u128(7),
        project_id: 42,
        image_descriptions: vec!["A fox".into()],
        config: JobConfig::default(),
    };
    let style = Style::default();
    let claim = async |lease| {
        let terms = ClaimTerms { lease, usual_style: &style };
        store.claim(&command, None, terms).await.expect("an answer")
    };
    // A lease of no length has run out with the next tick of the database's clock.
    let Claim::Run(former) = claim(Duration::ZERO).await else { panic!("it is new") };
    let current = loop {
        if let Claim::Run(current) = claim(Duration::from_mins(1)).await {
            break current;
        }
    };
    assert_eq!((former.lease.token, current.lease.token, current.losses), (1, 2, 1));

    let image = former.images[0].id;
    let failure = ImageFailure {
        index: 1,
        description: "A fox".into(),
        code: ImageFailureCode::Timeout,
        message: "late".into(),
        attempts: 1,
        may_pass: true,
    };
    let context = Context { key: command.key(), trace: None, time: former.created_at };
    let event = Event::terminal(&context, &[], Totals { cost_usd: 0.0, duration_ms: 0 }, None);
    let ending = Ending { lease: former.lease, images: &[], error: None, cost_usd: 0.0, event: &event };
    let paid = PaidImage { lease: former.lease, asset_id: image };
    let outcomes = [
        ("reserve_path", store.reserve_path(former.lease, image, "a.png").await.map(drop)),
        ("fail_image", store.fail_image(former.lease, image, &failure, None).await),
        ("pay", store.pay(paid, MicroUsd(20_000), None).await.map(drop)),
        ("refund", store.take_back(paid, MicroUsd(20_000), "2026-11-24").await),
        ("renew", store.renew(former.lease, Duration::from_mins(1)).await),
        ("release", store.release(former.lease, true).await),
        ("finish", store.finish(&ending).await),
    ];
    for (what, outcome) in outcomes {
        assert!(matches!(outcome, Err(StoreError::LeaseLost)), "{what}: {outcome:?}");
    }
    let job = store.job(command.job_id).await.expect("an answer").expect("a job");
    assert_eq!((job.status.as_str(), job.attempts, job.finished_at), ("running", 0, None));
    assert_eq!((job.assets[0].status.as_str(), job.assets[0].requests), ("pending", 0));
    assert!(job.assets[0].file_path.is_none() && job.cost_usd.abs() < f64::EPSILON);
    store.renew(current.lease, Duration::from_mins(1)).await.expect("it is the holder's");
}

#[tokio::test]
async fn two_processes_on_one_database_pace_themselves_together_and_keep_to_the_pause_of_either() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = SecretString::from(format!("sqlite://{}/quota.db?mode=rwc", folder.path().display()));
    let (one, other) = (Store::connect(&url).await.expect("a database"), Store::connect(&url).await.expect("the same"));
    one.migrate().await.expect("migrated");
    let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
    // Two come at once, the others a minute apart, whoever asks.
    let pace = Pace { interval: minute, tolerance: minute };
    let mut waits = Vec::new();
    for store in [&one, &other, &other, &one, &other] {
        let wait = store.reserve_request(pace).await.expect("a place");
        waits.push((wait + Duration::from_secs(30)).as_secs() / 60);
    }
    assert_eq!(waits, [0, 0, 1, 2, 3]);
    assert_eq!(one.requests_paused_for().await.expect("an answer"), Duration::ZERO);
    // A pause of one holds for the other, a shorter one does not end it, and after it they come one by one.
    one.pause_requests(hour, pace).await.expect("paused");
    other.pause_requests(minute, pace).await.expect("paused");
    assert!(other.requests_paused_for().await.expect("an answer") > hour / 2);
    let after = [one.reserve_request(pace).await, other.reserve_request(pace).await];
    // The pause began a moment ago.
    let after = after.map(|wait| (wait.expect("a place") + Duration::from_secs(30)).as_secs() / 60);
    assert_eq!(after, [60, 61]);
}
