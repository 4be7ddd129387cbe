//! Databases of a newer version, silent clients, and claims and writes that wait for a lock.

use std::time::Duration;

use anyhow::Result;
use dev_services::wait::wait_until;
use integration_tests::{Database, TestEnv, WAIT_TIMEOUT, command};
use sea_orm::{ConnectOptions, ConnectionTrait, Database as Connect, DatabaseTransaction, TransactionTrait};
use serde_json::json;

/// A session of its own with an open transaction.
async fn begin_session(env: &TestEnv) -> Result<DatabaseTransaction> {
    let mut options = ConnectOptions::new(env.database_url());
    options.max_connections(1);
    Ok(Connect::connect(options).await?.begin().await?)
}

/// Waits until a session of the test's database waits for a lock.
async fn wait_for_blocked_session(env: &TestEnv) -> Result<()> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let blocked = async || env.query_rows(sql).await.is_ok_and(|rows| !rows.is_empty()).then_some(());
    wait_until("a session that waits for a lock", WAIT_TIMEOUT, blocked).await
}

#[tokio::test]
async fn worker_runs_on_a_database_of_a_newer_version_on_sqlite() -> Result<()> {
    worker_runs_on_a_database_of_a_newer_version(Database::Sqlite).await
}

#[tokio::test]
async fn worker_runs_on_a_database_of_a_newer_version_on_postgres() -> Result<()> {
    worker_runs_on_a_database_of_a_newer_version(Database::Postgres).await
}

async fn worker_runs_on_a_database_of_a_newer_version(database: Database) -> Result<()> {
    let env = TestEnv::with_database(database).await?;
    assert!(env.run(&["migrate"]).await?.status.success());
    let newer = "m20991231_000099_of_a_newer_version";
    for sql in [
        "ALTER TABLE jobs ADD COLUMN of_a_newer_version TEXT".to_owned(),
        "CREATE TABLE of_a_newer_version (id BIGINT)".to_owned(),
        format!("INSERT INTO seaql_migrations (version, applied_at) VALUES ('{newer}', 0)"),
    ] {
        env.query_rows(&sql).await?;
    }
    let worker = env.start_ready_worker().await?;
    let unknown = worker.metrics().await?.value("asset_worker_database_unknown_migrations", &[]);
    assert_eq!(unknown, Some(1.0));
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    events.wait_for("completed").await?;
    let migrated = env.run(&["migrate"]).await?;
    assert_eq!(String::from_utf8_lossy(&migrated.stdout), "the database is up to date\n");
    let doctor = env.run(&["doctor"]).await?;
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.success() && text.contains(newer), "{text}");
    assert!(env.run(&["jobs", "list"]).await?.status.success());
    Ok(())
}

/// A worker loses its connection to the database between the lock of the day's spending and the commit.
#[tokio::test]
async fn client_silent_in_a_payment_does_not_block_other_workers() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("WORKER_MAX_IN_FLIGHT_JOBS", "1");
    assert!(env.run(&["migrate"]).await?.status.success());
    // A payment waits for this lock after it has locked the day's row.
    env.query_rows(
        "CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END'",
    )
    .await?;
    env.query_rows(
        "CREATE TRIGGER hold AFTER INSERT OR UPDATE ON spending FOR EACH ROW EXECUTE FUNCTION wait_for_test()",
    )
    .await?;
    let session = begin_session(&env).await?;
    session.execute_unprepared("SELECT pg_advisory_xact_lock(42)").await?;
    let proxy = env.start_database_proxy().await?;
    let _silent = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    wait_for_blocked_session(&env).await?;
    proxy.stall();
    session.commit().await?;
    env.set("DATABASE_URL", env.database_url().to_owned());
    let _other = env.start_ready_worker().await?;
    producer.publish(&command(2, &["A bear"], &json!({}))).await?;
    loop {
        let data = events.wait_for_data("completed").await?;
        if data["project_id"] == 2 {
            return Ok(());
        }
    }
}

/// The last holder of the lease writes its attempt while the next claim waits for the row.
#[tokio::test]
async fn claim_counts_the_attempts_of_the_last_holder() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    env.set("STABILITY_MAX_CONCURRENT", "1");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "5");
    env.sandbox.set_latency(Duration::from_millis(700));
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox", "A bear", "An owl"], &json!({"min_success_rate": 1.0}))).await?;
    env.wait_for_requests(1).await?;
    assert!(env.run(&["pause"]).await?.status.success());
    producer.wait_for_waiting_commands(1).await?;
    let session = begin_session(&env).await?;
    session.execute_unprepared("UPDATE jobs SET attempts = 2, lease_losses = 1").await?;
    assert!(env.run(&["resume"]).await?.status.success());
    wait_for_blocked_session(&env).await?;
    session.commit().await?;
    events.wait_for("completed").await?;
    let log = worker.log();
    let claim = log.lines().rfind(|line| line.contains("\"job attempt started\"")).unwrap_or_default();
    assert!(claim.contains("\"attempts\":2"), "{claim}");
    Ok(())
}

/// A write of the lease holder that waits for another worker's claim sees the claim, not the row as it was before.
#[tokio::test]
async fn write_that_waits_for_a_claim_loses_the_lease() -> Result<()> {
    let mut env = TestEnv::with_database(Database::Postgres).await?;
    // The renewal of the lease, a quarter later, would wait for the claim too.
    env.set("WORKER_LEASE", "24s");
    env.sandbox.set_sketch(true);
    env.sandbox.set_latency(Duration::from_secs(1));
    let session = begin_session(&env).await?;
    let worker = env.start_ready_worker().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    env.wait_for_requests(1).await?;
    // A claim whose lease has expired, so that the worker can take the job over.
    session.execute_unprepared("UPDATE jobs SET lease_token = lease_token + 1, lease_until_ms = 0").await?;
    wait_for_blocked_session(&env).await?;
    session.commit().await?;
    events.wait_for("completed").await?;
    assert!(worker.log().contains("job lease lost"), "{}", worker.log());
    assert_eq!(env.query_rows("SELECT lease_token FROM jobs").await?, [json!({"lease_token": 3})]);
    // The image was not stored under the lost lease, so it was made again.
    assert_eq!(env.sandbox.ledger().requests, 2);
    Ok(())
}
