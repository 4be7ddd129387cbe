//! What the pages of `serve` show: attempts, costs of images, running workers, jobs that are searched for, activity.

use domain::command::Command;
use sea_orm::ConnectionTrait;
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;

async fn open() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("create a temporary directory");
    let url = SecretString::from(format!("sqlite://{}/page.db?mode=rwc", folder.path().display()));
    let store = Store::connect(&url).await.expect("connect");
    store.migrate().await.expect("migrate");
    (folder, store)
}

async fn claim(store: &Store, command: &Command, worker: &str) -> Box<ClaimedJob> {
    let style = Style::default();
    let terms = ClaimOptions {
        lease_duration: Duration::from_mins(1),
        default_style: &style,
        default_engine: "core",
        reply: None,
        worker,
    };
    match store.claim(command, None, terms).await.expect("claim the job") {
        Claim::Acquired(claimed) => claimed,
        other => panic!("not acquired: {other:?}"),
    }
}

async fn execute(store: &Store, sql: &str) {
    store.db.execute_unprepared(sql).await.expect("execute the statement");
}

#[tokio::test]
async fn attempts_and_costs_of_images_are_kept_until_the_purge() {
    let (_folder, store) = open().await;
    let command = one_image_command();
    let first = claim(&store, &command, "pod-1").await;
    let image = LeasedImage { lease: first.lease, asset_id: first.images[0].id };
    let payer = Payer { key: &KeyHash::new(&"sk-key".into()), probe: None };
    for price in [20_000, 30_000] {
        let reserved = store.reserve_cost(image, payer, MicroUsd(price), None).await.expect("reserve the cost");
        let CostReservation::Reserved(day) = reserved else { panic!("not reserved") };
        if price == 30_000 {
            store.refund(image, MicroUsd(price), &day).await.expect("refund");
        }
    }
    store.release(first.lease, true).await.expect("release");
    let second = claim(&store, &command, "pod-2").await;
    store.release(second.lease, false).await.expect("release");
    claim(&store, &command, "pod-3").await;
    let former = store.release(second.lease, true).await;
    assert!(matches!(former, Err(StoreError::LeaseLost)), "only the holder ends an attempt");
    let details = store.read_job_details(command.job_id).await.expect("read").expect("the job is known");
    let attempts: Vec<_> = details
        .attempts
        .iter()
        .map(|attempt| (attempt.worker.as_str(), attempt.released_at.is_some(), attempt.is_counted))
        .collect();
    assert_eq!(attempts, [("pod-1", true, true), ("pod-2", true, false), ("pod-3", false, false)]);
    let image = &details.report.assets[0];
    assert_eq!(image.requests, 2, "a refunded request counts as sent");
    assert_eq!([image.cost_usd, details.report.cost_usd].map(MicroUsd::from_usd), [MicroUsd(20_000); 2]);

    execute(
        &store,
        "UPDATE jobs SET status = 'failed', terminal_event = '{}', published_at = '2026-11-27T10:00:00Z', finished_at = '2026-11-27T10:00:00Z'",
    )
    .await;
    assert_eq!(store.purge_jobs(&[command.job_id]).await.expect("purge"), [command.job_id]);
    let rows = store
        .db
        .query_all_raw(sea_orm::Statement::from_string(store.db.get_database_backend(), "SELECT token FROM attempts"));
    assert!(rows.await.expect("read the attempts").is_empty());
}

/// A worker of an earlier version purges jobs without their attempts.
#[tokio::test]
async fn attempts_that_an_earlier_version_left_block_no_job() {
    let (_folder, store) = open().await;
    let command = one_image_command();
    claim(&store, &command, "pod-1").await;
    execute(&store, "UPDATE jobs SET status = 'purged', purged_at = '2020-01-01T00:00:00Z'").await;
    execute(&store, "DELETE FROM assets").await;
    execute(
        &store,
        &format!(
            "INSERT INTO attempts (job_id, token, worker, started_at) VALUES (X'{}', 1, 'old', '2020-01-01T00:00:00Z')",
            Uuid::from_u128(8).simple()
        ),
    )
    .await;
    assert_eq!(store.forget_purged_jobs(10).await.expect("forget"), 1);
    // Of the forgotten job none is left; that of another one is replaced when its id is used again.
    let again = claim(&store, &Command { job_id: Uuid::from_u128(8), ..command.clone() }, "new").await;
    let details = store.read_job_details(again.lease.job_id).await.expect("read").expect("the job is known");
    assert_eq!(details.attempts.iter().map(|attempt| attempt.worker.as_str()).collect::<Vec<_>>(), ["new"]);
    claim(&store, &command, "pod-2").await;
    let details = store.read_job_details(command.job_id).await.expect("read").expect("the job is known");
    assert_eq!(details.attempts.iter().map(|attempt| attempt.worker.as_str()).collect::<Vec<_>>(), ["pod-2"]);
}

#[tokio::test]
async fn worker_is_alive_for_45_seconds_and_known_for_a_day() {
    let (_folder, store) = open().await;
    let started_at = OffsetDateTime::now_utc();
    let heartbeat = |id: u128, host: &'static str, jobs| Heartbeat {
        id: Uuid::from_u128(id),
        host,
        version: "0.1.0",
        started_at,
        jobs,
    };
    for (id, host, jobs) in [(1, "b", 0), (2, "a", 3), (3, "c", 1), (2, "a", 4)] {
        store.record_heartbeat(heartbeat(id, host, jobs)).await.expect("record a heartbeat");
    }
    let seen = async |id: u128, seconds: i64| {
        let id = Uuid::from_u128(id).simple();
        execute(&store, &format!("UPDATE workers SET seen_at_ms = seen_at_ms - {seconds} * 1000 WHERE id = X'{id}'"))
            .await;
    };
    let list = async || {
        let workers = store.read_workers(10).await.expect("list the workers");
        workers.into_iter().map(|worker| (worker.host, worker.is_alive, worker.jobs)).collect::<Vec<_>>()
    };
    seen(1, 44).await;
    seen(3, 46).await;
    assert_eq!(list().await, [("a".into(), true, 4), ("b".into(), true, 0), ("c".into(), false, 1)]);
    store.remove_worker(Uuid::from_u128(1)).await.expect("remove a worker");
    seen(3, 24 * 60 * 60).await;
    assert_eq!(list().await, [("a".into(), true, 4)]);
    store.record_heartbeat(heartbeat(2, "a", 0)).await.expect("record a heartbeat");
    seen(3, -24 * 60 * 60).await;
    assert_eq!(list().await.len(), 1, "the row of a worker that was lost a day ago is deleted");
}

#[tokio::test]
async fn jobs_are_found_by_failure_id_and_description() {
    let (_folder, store) = open().await;
    let long = format!("{} and a half", "A fox with a very long description ".repeat(3));
    let descriptions = ["A fox", "a fox", "100% A_fox", "狐狸", "A f", long.as_str(), "B'; --"];
    for (number, description) in (1_u128..).zip(descriptions) {
        let command = Command {
            job_id: Uuid::from_u128(number << 96),
            image_descriptions: vec!["Another image".into(), description.into()],
            ..one_image_command()
        };
        claim(&store, &command, "pod").await;
    }
    let find = async |filter: JobFilter| {
        let jobs = store.read_jobs_page(&filter, None, 50).await.expect("list the jobs");
        let mut numbers: Vec<u128> = jobs.iter().map(|job| job.job_id.as_u128() >> 96).collect();
        numbers.sort_unstable();
        numbers
    };
    let described =
        async |text: &str| find(JobFilter { description: Some(text.to_owned()), ..JobFilter::default() }).await;
    for (text, expected) in [
        ("A fox", vec![1, 6]),
        ("A f", vec![1, 5, 6]),
        ("a", vec![2]),
        ("100% A_", vec![3]),
        ("100%%", vec![]),
        ("_", vec![]),
        ("狐", vec![4]),
        ("B'", vec![7]),
        ("Another image", vec![1, 2, 3, 4, 5, 6, 7]),
        // Only the first 60 characters count.
        (&format!("{}other", &long[..60]), vec![6]),
        ("ox", vec![]),
    ] {
        assert_eq!(described(text).await, expected, "{text}");
    }

    execute(
        &store,
        "UPDATE assets SET error_code = 'timeout', status = 'failed' WHERE metadata ->> 'description' = 'a fox'",
    )
    .await;
    execute(
        &store,
        &format!("UPDATE jobs SET error_code = 'expired' WHERE id = X'{}'", Uuid::from_u128(3 << 96).simple()),
    )
    .await;
    let failed = async |code: &str| {
        let failure = Some(code.parse().expect("a failure code"));
        find(JobFilter { failure, ..JobFilter::default() }).await
    };
    assert_eq!((failed("timeout").await, failed("expired").await, failed("storage").await), (vec![2], vec![3], vec![]));
    let both = JobFilter {
        failure: Some("timeout".parse().expect("a code")),
        description: Some("A fox".to_owned()),
        ..JobFilter::default()
    };
    assert_eq!(find(both).await, Vec::<u128>::new());
    let ids = Some(Uuid::from_u128(2 << 96)..=Uuid::from_u128((4 << 96) - 1));
    assert_eq!(find(JobFilter { ids, ..JobFilter::default() }).await, [2, 3]);
}

#[tokio::test]
async fn activity_counts_ended_jobs_whether_published_or_not() {
    let (_folder, store) = open().await;
    for number in 1..=5 {
        let command = Command { job_id: Uuid::from_u128(number), ..one_image_command() };
        claim(&store, &command, "pod").await;
    }
    let at = |text: &str| OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).expect("a time");
    let end = async |number: u128, time: &str, status: &str, code: &str, published: &str| {
        let id = Uuid::from_u128(number).simple();
        let sql = format!(
            "UPDATE jobs SET status = '{status}', error_code = {code}, terminal_event = '{{}}', published_at = {published}, \
             finished_at = '{time}' WHERE id = X'{id}'"
        );
        execute(&store, &sql).await;
    };
    end(1, "2026-11-27T10:00:00Z", "completed", "NULL", "'2026-11-27T10:00:01Z'").await;
    end(2, "2026-11-27T10:59:59.999Z", "completed", "NULL", "NULL").await;
    end(3, "2026-11-27T10:30:00Z", "failed", "'expired'", "NULL").await;
    end(4, "2026-11-27T11:00:00Z", "failed", "'expired'", "NULL").await;
    execute(
        &store,
        "UPDATE assets SET status = 'completed' WHERE job_id IN (SELECT id FROM jobs WHERE status = 'completed')",
    )
    .await;
    let activity =
        store.read_activity(at("2026-11-27T10:00:00Z"), at("2026-11-27T11:00:00Z")).await.expect("read the activity");
    let sorted = |mut counts: Vec<EndedCount>| {
        counts.sort_by(|a, b| a.code.cmp(&b.code));
        counts.into_iter().map(|count| (count.code.unwrap_or_default(), count.count)).collect::<Vec<_>>()
    };
    assert_eq!(sorted(activity.jobs), [(String::new(), 2), ("expired".to_owned(), 1)]);
    assert_eq!(sorted(activity.images), [(String::new(), 2), ("not_attempted".to_owned(), 1)]);
    assert_eq!(store.count_open_jobs().await.expect("count"), (0, 1));
    assert_eq!(store.count_leases().await.expect("count"), 1);
}
