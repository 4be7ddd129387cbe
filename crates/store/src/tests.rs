//! Tests: rows of an older version, writes by a former lease holder, a quota shared by two processes, a pause, and a
//! refused key.

use domain::command::{Command, JobConfig};
use domain::event::{Event, EventContext, JobError, Totals};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::generation_params::GenerationParams;
use domain::image_spec::ImageFormat;
use domain::money::MicroUsd;
use domain::outcome::{Asset, ImageFailure, ImageState, Origin};
use domain::style::Style;
use migrations::{Migrator, MigratorTraitSelf};
use sea_orm::ConnectionTrait;
use uuid::Uuid;

use super::*;

mod page;

fn one_image_command() -> Command {
    Command {
        job_id: Uuid::from_u128(7),
        project_id: 42,
        image_descriptions: vec!["A fox".into()],
        config: JobConfig::default(),
    }
}

/// Rows as version 0.1 wrote them after its first migration: one image completed, one failed.
#[tokio::test]
async fn job_started_by_an_older_version_continues() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = format!("sqlite://{}/old.db?mode=rwc", folder.path().display());
    let store = Store::connect(&SecretString::from(url)).await.expect("connect");
    Migrator::default().up(&store.db, Some(1)).await.expect("apply the first migration");
    let command = Command {
        job_id: Uuid::from_u128(7),
        project_id: 42,
        image_descriptions: vec!["A fox".into(), "A bear".into()],
        config: JobConfig { steps: Some(30), ..JobConfig::default() },
    };
    let body = serde_json::to_string(&command).expect("serialize the command");
    let digest = domain::digest::sha256(&body);
    let id = |number: u128| format!("X'{}'", Uuid::from_u128(number).simple());
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
        store.db.execute_unprepared(&row).await.expect("insert a row");
    }
    assert!(store.migrate().await.expect("apply the other migrations") > 0);

    let usual_style = Style { steps: Some(40), ..Style::default() };
    let terms = ClaimOptions {
        lease_duration: Duration::from_secs(12),
        default_style: &usual_style,
        default_engine: "core",
        reply: None,
        worker: "test",
    };
    let Claim::Acquired(claimed) = store.claim(&command, None, terms).await.expect("claim the job") else {
        panic!("the job was not acquired")
    };
    assert_eq!((claimed.first_claim, claimed.attempts, claimed.lease.token), (false, 1, 1));
    assert_eq!(claimed.style.steps, Some(30), "the value of the command");
    let ImageState::Completed(asset) = &claimed.images[0].state else { panic!("image 1 is not completed") };
    assert_eq!((asset.params.prompt.as_str(), asset.seed), ("A fox, 4k", 7));
    let ImageState::Failed(failure) = &claimed.images[1].state else { panic!("image 2 has not failed") };
    assert!(failure.retryable, "a timeout is retryable");
    assert_eq!((claimed.images[1].requests, claimed.cost), (4, MicroUsd(20_000)));
    // A second claim finds the job leased.
    assert!(matches!(store.claim(&command, None, terms).await.expect("claim the job"), Claim::Leased));
}

/// A program runs on a database that a newer version has migrated, and applies the migrations that it still lacks.
#[tokio::test]
async fn migrations_of_a_newer_version_are_ignored() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = format!("sqlite://{}/newer.db?mode=rwc", folder.path().display());
    let store = Store::connect(&SecretString::from(url)).await.expect("connect");
    Migrator::default().up(&store.db, Some(5)).await.expect("apply five migrations");
    let newer = "m20991231_000099_of_a_newer_version";
    for sql in [
        format!("INSERT INTO seaql_migrations (version, applied_at) VALUES ('{newer}', 0)"),
        "ALTER TABLE jobs ADD COLUMN of_a_newer_version TEXT".to_owned(),
    ] {
        store.db.execute_unprepared(&sql).await.expect("migrate as a newer version");
    }
    let state = store.read_schema_state().await.expect("read the schema's state");
    assert!(state.pending > 0 && state.newer == [newer], "{state:?}");
    assert_eq!(store.migrate().await.expect("migrate"), state.pending);
    assert_eq!(store.migrate().await.expect("migrate again"), 0);
    let _ = claim_two_jobs(&store).await;
}

/// A worker with another default engine continues a job with the engine of its first claim.
#[tokio::test]
async fn engine_is_settled_at_the_first_claim() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display());
    let store = Store::connect(&SecretString::from(url)).await.expect("connect");
    store.migrate().await.expect("migrate");
    let style = Style::default();
    let claim_engine = async |command: &Command, default_engine| {
        let terms = ClaimOptions {
            lease_duration: Duration::from_mins(1),
            default_style: &style,
            default_engine,
            reply: None,
            worker: "test",
        };
        let claim = store.claim(command, None, terms).await.expect("claim the job");
        let Claim::Acquired(job) = claim else { panic!("the job is not acquired") };
        store.release(job.lease, true).await.expect("release the job");
        job.engine
    };
    let unset = one_image_command();
    assert_eq!(claim_engine(&unset, "core").await, "core");
    assert_eq!(claim_engine(&unset, "ultra").await, "core");
    let mut set = Command { job_id: Uuid::now_v7(), ..one_image_command() };
    set.config.engine = Some("sd3.5-large".to_owned());
    assert_eq!(claim_engine(&set, "core").await, "sd3.5-large");
    // A job that an earlier version has claimed.
    store.db.execute_unprepared("UPDATE jobs SET engine = NULL").await.expect("forget the engines");
    assert_eq!(claim_engine(&unset, "ultra").await, "stable-diffusion-xl-1024-v1-0");
    assert_eq!(claim_engine(&set, "ultra").await, "sd3.5-large");
}

/// Every write with the lease of an older claim has no effect and returns `LeaseLost`.
#[tokio::test]
async fn former_lease_holder_cannot_write() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = format!("sqlite://{}/jobs.db?mode=rwc", folder.path().display());
    let store = Store::connect(&SecretString::from(url)).await.expect("connect");
    store.migrate().await.expect("migrate");
    let command = one_image_command();
    let style = Style::default();
    let claim = async |lease| {
        let terms = ClaimOptions {
            lease_duration: lease,
            default_style: &style,
            default_engine: "core",
            reply: None,
            worker: "test",
        };
        store.claim(&command, None, terms).await.expect("claim the job")
    };
    // A lease of zero duration has expired at the next tick of the database's clock.
    let Claim::Acquired(former) = claim(Duration::ZERO).await else { panic!("a new job was not acquired") };
    let current = loop {
        if let Claim::Acquired(current) = claim(Duration::from_mins(1)).await {
            break current;
        }
    };
    assert_eq!((former.lease.token, current.lease.token, current.lease_losses), (1, 2, 1));

    let image = former.images[0].id;
    let failure = ImageFailure {
        index: 1,
        description: "A fox".into(),
        code: ImageFailureCode::Timeout,
        message: "late".into(),
        attempts: 1,
        retryable: true,
    };
    let context = EventContext { key: command.key(), trace: None, time: former.created_at };
    let event = Event::terminal(&context, &[], None, Totals { cost_usd: 0.0, duration_ms: 0 }, None);
    let ending = JobEnd { lease: former.lease, images: &[], error: None, cost_usd: 0.0, event: &event, messages: &[] };
    let paid = LeasedImage { lease: former.lease, asset_id: image };
    let payer = Payer { key: &KeyHash::new(&"sk-key".into()), probe: None };
    let outcomes = [
        ("reserve_path", store.reserve_path(former.lease, image, "a.png").await.map(drop)),
        ("complete_image", store.complete_image(former.lease, &asset(image), Uuid::from_u128(9)).await),
        ("clear_lease_losses", store.clear_lease_losses(former.lease).await),
        ("fail_image", store.fail_image(former.lease, image, &failure, None).await),
        ("reserve_cost", store.reserve_cost(paid, payer, MicroUsd(20_000), None).await.map(drop)),
        ("refund", store.refund(paid, MicroUsd(20_000), "2026-11-24").await),
        ("renew", store.renew(former.lease, Duration::from_mins(1)).await),
        ("release", store.release(former.lease, true).await),
        ("finish", store.finish(&ending).await.map(drop)),
    ];
    for (what, outcome) in outcomes {
        assert!(matches!(outcome, Err(StoreError::LeaseLost)), "{what}: {outcome:?}");
    }
    let job = store.read_job_report(command.job_id).await.expect("read the job").expect("the job exists");
    assert_eq!((job.status.as_str(), job.attempts, job.finished_at), ("running", 0, None));
    assert_eq!((job.assets[0].status.as_str(), job.assets[0].requests), ("pending", 0));
    assert!(job.assets[0].file_path.is_none() && job.cost_usd.abs() < f64::EPSILON);
    store.renew(current.lease, Duration::from_mins(1)).await.expect("the current holder renews its lease");
}

/// The completed image 1 of a job.
fn asset(id: Uuid) -> Asset {
    Asset {
        id,
        index: 1,
        file_path: "a.png".into(),
        uri: "file:///a.png".into(),
        width: 1920,
        height: 1080,
        format: ImageFormat::Png,
        size_bytes: 9,
        sha256: "00".into(),
        description: "A fox".into(),
        params: GenerationParams::default(),
        seed: 7,
        origin: Origin::Generated,
    }
}

#[tokio::test]
async fn quota_and_pauses_are_shared_between_processes() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = SecretString::from(format!("sqlite://{}/quota.db?mode=rwc", folder.path().display()));
    let (one, other) = (Store::connect(&url).await.expect("connect"), Store::connect(&url).await.expect("connect"));
    one.migrate().await.expect("migrate");
    let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
    // The first two slots are immediate, the others a minute apart, for both processes together.
    let pace = Pace { interval: minute, tolerance: minute };
    let mut waits = Vec::new();
    for store in [&one, &other, &other, &one, &other] {
        let wait = store.reserve_request_slot(pace).await.expect("reserve a request slot");
        waits.push((wait + Duration::from_secs(30)).as_secs() / 60);
    }
    assert_eq!(waits, [0, 0, 1, 2, 3]);
    assert_eq!(one.read_remaining_pause().await.expect("read the quota"), Duration::ZERO);
    // A pause set by one holds for the other, a shorter pause does not end it, and after it there is no burst.
    one.pause_requests(hour, pace).await.expect("pause requests");
    other.pause_requests(minute, pace).await.expect("pause requests");
    assert!(other.read_remaining_pause().await.expect("read the quota") > hour / 2);
    let after = [one.reserve_request_slot(pace).await, other.reserve_request_slot(pace).await];
    // Rounded to minutes, because the pause began a moment ago.
    let after = after.map(|wait| (wait.expect("reserve a request slot") + Duration::from_secs(30)).as_secs() / 60);
    assert_eq!(after, [60, 61]);
}

#[tokio::test]
async fn no_cost_is_reserved_while_paused() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = SecretString::from(format!("sqlite://{}/gate.db?mode=rwc", folder.path().display()));
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    let command = one_image_command();
    let terms = ClaimOptions {
        lease_duration: Duration::from_mins(1),
        default_style: &Style::default(),
        default_engine: "core",
        reply: None,
        worker: "test",
    };
    let Claim::Acquired(claimed) = store.claim(&command, None, terms).await.expect("claim the job") else {
        panic!("a new job was not acquired")
    };
    let image = LeasedImage { lease: claimed.lease, asset_id: claimed.images[0].id };
    let price = MicroUsd(20_000);
    let payer = Payer { key: &KeyHash::new(&"sk-key".into()), probe: None };
    assert_eq!(store.read_pause().await.expect("read the gate"), None);
    store.pause(Some("first")).await.expect("pause");
    let first = store.read_pause().await.expect("read the gate").expect("the workers are paused");
    store.pause(Some("second")).await.expect("pause");
    let second = store.read_pause().await.expect("read the gate").expect("the workers are paused");
    assert_eq!((second.since, second.reason.as_deref()), (first.since, Some("second")));
    for limit in [None, Some(MicroUsd(1_000_000))] {
        let reserved = store.reserve_cost(image, payer, price, limit).await.expect("reserve the cost");
        assert_eq!(reserved, CostReservation::GateClosed);
    }
    assert_eq!(store.read_spent_today().await.expect("read the spending"), MicroUsd(0));
    assert!(store.resume().await.expect("resume"));
    assert!(!store.resume().await.expect("resume"), "nothing to resume");
    let reserved = store.reserve_cost(image, payer, price, None).await.expect("reserve the cost");
    assert!(matches!(reserved, CostReservation::Reserved(_)), "{reserved:?}");
}

/// Two jobs with one image each, leased for a minute.
async fn claim_two_jobs(store: &Store) -> [LeasedImage; 2] {
    let style = Style::default();
    let terms = ClaimOptions {
        lease_duration: Duration::from_mins(1),
        default_style: &style,
        default_engine: "core",
        reply: None,
        worker: "test",
    };
    let claim = async |id| {
        let command = Command { job_id: Uuid::from_u128(id), ..one_image_command() };
        let Claim::Acquired(claimed) = store.claim(&command, None, terms).await.expect("claim the job") else {
            panic!("a new job was not acquired")
        };
        LeasedImage { lease: claimed.lease, asset_id: claimed.images[0].id }
    };
    [claim(1).await, claim(2).await]
}

#[tokio::test]
async fn refused_key_is_opened_by_one_admitted_job() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = SecretString::from(format!("sqlite://{}/keys.db?mode=rwc", folder.path().display()));
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    let [first, second] = claim_two_jobs(&store).await;
    let (key, other_key) = (KeyHash::new(&"sk-key".into()), KeyHash::new(&"sk-other".into()));
    let pays = async |image: LeasedImage, key: &KeyHash, probe| {
        let reserved = store.reserve_cost(image, Payer { key, probe }, MicroUsd(20_000), None).await.expect("reserve");
        matches!(reserved, CostReservation::Reserved(_))
    };
    let refuse = async |image: LeasedImage, code| {
        store.refuse_key(&key, image.lease.job_id, code, "no").await.expect("refuse the key")
    };
    assert_eq!(store.read_key(&key).await.expect("read the key"), None);
    assert!(pays(first, &key, None).await && pays(second, &key, None).await);
    // Of two refusals, one closes the gate, for this key only.
    assert!(refuse(first, JobFailureCode::Unauthorized).await);
    assert!(!refuse(second, JobFailureCode::InsufficientCredits).await);
    assert!(!pays(first, &key, None).await && !pays(second, &key, None).await && pays(first, &other_key, None).await);
    let refusal = store.read_latest_refusal().await.expect("read the refusal").expect("a key is refused");
    assert_eq!((refusal.code, refusal.detail.as_str()), (JobFailureCode::Unauthorized, "no"));
    // The first probe is due after 30 s.
    assert_eq!(store.begin_probe(&key, true).await.expect("probe"), None);
    let outdated = store.begin_probe(&key, false).await.expect("probe").expect("a probe");
    let probe = store.begin_probe(&key, false).await.expect("probe").expect("another worker's probe");
    assert!(!pays(first, &key, Some(outdated)).await, "only the latest probe admits a job");
    assert!(
        pays(first, &key, Some(probe)).await && pays(first, &key, None).await && !pays(second, &key, Some(probe)).await
    );
    assert_eq!(store.begin_probe(&key, false).await.expect("probe"), None, "the admitted job has its lease");
    // A refusal of the admitted job ends its admission.
    assert!(!refuse(first, JobFailureCode::InsufficientCredits).await);
    assert!(!pays(first, &key, Some(probe)).await);
    let status = store.read_key(&key).await.expect("read the key").expect("a row");
    assert_eq!(status.refusal.map(|refusal| refusal.code), Some(JobFailureCode::InsufficientCredits));
    // The end of its lease frees the place of a job that neither succeeded nor was refused.
    let probe = store.begin_probe(&key, false).await.expect("probe").expect("a probe");
    assert!(pays(first, &key, Some(probe)).await);
    store.release(first.lease, false).await.expect("release");
    let probe = store.begin_probe(&key, false).await.expect("probe").expect("a probe");
    assert!(!store.accept_key(&key, first.lease.job_id).await.expect("accept"), "it is no longer admitted");
    assert!(pays(second, &key, Some(probe)).await);
    assert!(store.accept_key(&key, second.lease.job_id).await.expect("accept"));
    assert_eq!(store.read_key(&key).await.expect("read the key").and_then(|status| status.refusal), None);
    assert!(pays(second, &key, None).await);
}

#[tokio::test]
async fn probe_waits_double_from_30_seconds_to_5_minutes() {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = SecretString::from(format!("sqlite://{}/keys.db?mode=rwc", folder.path().display()));
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    let [image, _] = claim_two_jobs(&store).await;
    let key = KeyHash::new(&"sk-key".into());
    let sql = "SELECT probe_due_ms - CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS BIGINT) AS wait_ms \
               FROM account_keys";
    let wait = async || {
        let statement = sea_orm::Statement::from_string(store.db.get_database_backend(), sql);
        let row = store.db.query_one_raw(statement).await.expect("read the due time").expect("a row");
        // Rounded up to whole seconds, because some milliseconds have passed.
        (row.try_get::<i64>("", "wait_ms").expect("a number") + 999) / 1000
    };
    store.reserve_cost(image, Payer { key: &key, probe: None }, MicroUsd(1), None).await.expect("reserve");
    for _ in 0..2 {
        assert!(store.refuse_key(&key, image.lease.job_id, JobFailureCode::Unauthorized, "no").await.expect("refuse"));
        let mut waits = vec![wait().await];
        let mut probe = None;
        for _ in 0..5 {
            // A probe that is not due does not change the wait.
            store.begin_probe(&key, false).await.expect("probe").expect("a probe");
            store.db.execute_unprepared("UPDATE account_keys SET probe_due_ms = 0").await.expect("make it due");
            probe = store.begin_probe(&key, true).await.expect("probe");
            waits.push(wait().await);
        }
        assert_eq!(waits, [30, 60, 120, 240, 300, 300]);
        // A success starts the waits over.
        let payer = Payer { key: &key, probe };
        store.reserve_cost(image, payer, MicroUsd(1), None).await.expect("reserve");
        assert!(store.accept_key(&key, image.lease.job_id).await.expect("accept"));
    }
}

#[tokio::test]
async fn lists_are_read_in_pages_by_index() {
    const JOBS: u128 = 620;
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = SecretString::from(format!("sqlite://{}/many.db?mode=rwc", folder.path().display()));
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    for number in 1..=JOBS {
        let key = domain::command::JobKey { job_id: Uuid::from_u128(number), project_id: 1 };
        let context = EventContext { key, trace: None, time: time::OffsetDateTime::now_utc() };
        let event = Event::terminal(&context, &[], None, Totals { cost_usd: 0.0, duration_ms: 0 }, None);
        let error = &JobError { code: JobFailureCode::InvalidRequest, message: "no".to_owned() };
        let job = UnclaimedJob { key, digest: "digest", error, event: &event, reply: None, messages: &[] };
        store.fail_unclaimed_job(&job).await.expect("record a job");
    }
    // The pages are complete also if several jobs have the same time.
    store
        .db
        .execute_unprepared(
            "UPDATE jobs SET created_at = (SELECT min(created_at) FROM jobs), \
         finished_at = (SELECT min(created_at) FROM jobs)",
        )
        .await
        .expect("update");
    for limit in [0, 20, 500, 501, 1_000] {
        let jobs = store
            .list_jobs(&JobFilter { project_id: Some(1), ..JobFilter::default() }, limit)
            .await
            .expect("list jobs");
        let ids: std::collections::HashSet<_> = jobs.iter().map(|job| job.job_id).collect();
        assert_eq!((jobs.len() as u64, ids.len()), (limit.min(620), jobs.len()));
    }
    let (mut last, mut ids) = (None, std::collections::HashSet::new());
    loop {
        let page = store.read_unpublished_events(last.as_ref()).await.expect("read events");
        assert!(page.len() <= 100);
        ids.extend(page.iter().map(|unpublished| unpublished.job_id));
        last = page.into_iter().next_back();
        if last.is_none() {
            break;
        }
    }
    assert_eq!(ids.len() as u128, JOBS);
    for (query, index) in [
        (
            "SELECT id FROM assets WHERE fingerprint = X'00' AND status = 'completed' ORDER BY updated_at DESC",
            "assets_cached",
        ),
        ("SELECT id FROM jobs WHERE project_id = 1 ORDER BY created_at DESC LIMIT 5", "jobs_project_id_created_at"),
        (
            "SELECT id FROM jobs WHERE terminal_event IS NOT NULL AND published_at IS NULL ORDER BY finished_at, id LIMIT 5",
            "jobs_unpublished",
        ),
    ] {
        let sql = format!("EXPLAIN QUERY PLAN {query}");
        let statement = sea_orm::Statement::from_string(store.db.get_database_backend(), sql);
        let plan = store.db.query_one_raw(statement).await.expect("explain").expect("a plan");
        let detail: String = plan.try_get("", "detail").expect("text");
        assert!(detail.contains(index), "{query}: {detail}");
    }
}

/// In paused time, so that the test does not wait for the retries.
#[tokio::test(start_paused = true)]
async fn command_waits_for_the_database_for_seconds_only() {
    let url = SecretString::from("postgres://user:password@127.0.0.1:1/database");
    let started = tokio::time::Instant::now();
    let error = Store::connect_existing(&url).await.err().expect("nothing listens on port 1");
    assert!(started.elapsed() <= Duration::from_secs(4), "{error}: {:?}", started.elapsed());
}
