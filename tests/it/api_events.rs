//! Streams of a job's events over the HTTP API.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use integration_tests::{Database, Proxy, ServerEvent, TestEnv};
use serde_json::json;

use crate::api::{new_env, submit, wait_for_end};

fn kinds(events: &[ServerEvent]) -> Vec<&str> {
    events.iter().filter_map(|event| event.kind.strip_prefix("assets.generation.")).collect()
}

async fn streams_show_the_whole_job(database: Database) -> Result<()> {
    let env = new_env(database).await?;
    let api = env.start_api().await?;
    let producer = env.connect_broker().await?;
    let mut published = producer.subscribe_to_events().await?;
    let id = submit(&api, &["A fox", "A gory battle", "A bear"], json!({"min_success_rate": 0.5})).await?;
    let early = api.watch(&id, None).await?;
    assert_eq!(early.status, 200);
    let _worker = env.start_ready_worker().await?;
    let early = early.rest().await?;
    assert_eq!(kinds(&early), ["started", "progress", "progress", "progress", "completed"]);
    // Live events are those of the broker, byte for byte.
    let messages = published.wait_for("completed").await?;
    assert_eq!(messages.len(), early.len());
    for (seen, message) in early.iter().zip(messages) {
        assert_eq!(seen.data.as_bytes(), message.body);
        assert_eq!(seen.json()["id"], seen.id);
    }

    // A stream that begins later shows the same events, rebuilt, and the same terminal one.
    let late = api.watch(&id, None).await?.rest().await?;
    let ids = |events: &[ServerEvent]| events.iter().map(|event| event.id.clone()).collect::<BTreeSet<_>>();
    assert_eq!((ids(&late), late.len(), late.last()), (ids(&early), early.len(), early.last()));
    let last = &late[3].json()["data"];
    assert_eq!((&last["succeeded"], &last["failed"], &last["total"]), (&json!(2), &json!(1), &json!(3)));

    // After an interruption at any event, what followed is sent.
    let is_failure = |event: &ServerEvent| !event.json()["data"]["code"].is_null();
    for (position, event) in early.iter().enumerate().take(early.len() - 1) {
        let rest = api.watch(&id, Some(&event.id)).await?.rest().await?;
        assert!(ids(&rest).is_superset(&ids(&early[position + 1..])), "{position}: {rest:?}");
        assert!(!ids(&rest).contains(&event.id), "{position}");
        // Of what came before, at most failures are sent again.
        if !is_failure(event) {
            let again = early[..position].iter().filter(|event| ids(&rest).contains(&event.id));
            assert!(again.into_iter().all(is_failure), "{position}: {rest:?}");
        }
    }
    let nothing = api.watch(&id, Some(&late.last().context("an event")?.id)).await?;
    assert_eq!(nothing.status, 204);
    Ok(())
}

#[tokio::test]
async fn streams_show_the_whole_job_with_sqlite() -> Result<()> {
    streams_show_the_whole_job(Database::Sqlite).await
}

#[tokio::test]
async fn streams_show_the_whole_job_with_postgres() -> Result<()> {
    streams_show_the_whole_job(Database::Postgres).await
}

/// The stream of the API is no consumer that the event was meant for.
#[tokio::test]
async fn terminal_event_without_a_queue_is_kept_while_it_is_watched() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let id = submit(&api, &["A fox"], json!({})).await?;
    let stream = api.watch(&id, None).await?;
    let worker = env.start_ready_worker().await?;
    assert_eq!(kinds(&stream.rest().await?).last(), Some(&"completed"));
    worker.wait_for_log("no queue is bound for the job's terminal event").await?;
    assert_eq!(wait_for_end(&api, &id).await?["event_published"], false);
    Ok(())
}

/// What a stream misses while the broker is away, the database tells.
#[tokio::test]
async fn stream_survives_the_loss_of_the_broker() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    let (proxy, url) = Proxy::in_front_of(&env.amqp_url, 5672).await?;
    env.set("AMQP_URL", url);
    let api = env.start_api().await?;
    env.set("AMQP_URL", env.amqp_url.clone());
    let id = submit(&api, &["A fox", "A bear"], json!({})).await?;
    let stream = api.watch(&id, None).await?;
    proxy.close();
    let _worker = env.start_ready_worker().await?;
    assert_eq!(kinds(&stream.rest().await?), ["started", "progress", "progress", "completed"]);
    Ok(())
}

#[tokio::test]
async fn only_known_jobs_can_be_watched() -> Result<()> {
    let env: TestEnv = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let id = uuid::Uuid::now_v7().to_string();
    assert_eq!(api.watch(&id, None).await?.status, 404);
    // Of a remembered cancellation, the job is not known.
    api.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await?;
    assert_eq!(api.watch(&id, None).await?.status, 404);
    assert_eq!(api.get(&format!("/v1/jobs/{id}")).await?.status, 404);
    // A job that no worker has claimed has no events but its end.
    let waiting = submit(&api, &["A fox", "A bear"], json!({})).await?;
    let stream = api.watch(&waiting, None).await?;
    api.post(&format!("/v1/jobs/{waiting}/cancel"), &json!({})).await?;
    assert_eq!(kinds(&stream.rest().await?), ["failed"]);
    assert_eq!(kinds(&api.watch(&waiting, None).await?.rest().await?), ["failed"]);
    env.execute("UPDATE jobs SET status = 'purged', terminal_event = NULL").await?;
    let purged = (api.watch(&waiting, None).await?.status, api.get(&format!("/v1/jobs/{waiting}")).await?.status);
    assert_eq!(purged, (410, 410));
    Ok(())
}

#[tokio::test]
async fn number_of_streams_is_limited_and_they_end_with_the_server() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let mut api = env.start_api().await?;
    let id = submit(&api, &["A fox"], json!({})).await?;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(api.watch(&id, None).await?);
    }
    assert!(streams.iter().all(|stream| stream.status == 200));
    let refused = api.get(&format!("/v1/jobs/{id}/events")).await?;
    assert_eq!((refused.status, &refused.json()["code"], refused.header("retry-after")), (503, &json!("busy"), "5"));
    // A stream that its client has closed makes room.
    streams.pop();
    let reopened = dev_services::wait::wait_until("room for a stream", integration_tests::WAIT_TIMEOUT, async || {
        api.watch(&id, None).await.ok().filter(|stream| stream.status == 200)
    });
    streams.push(reopened.await?);
    api.process().signal(dev_services::process::Signal::TERM);
    assert_eq!(api.process().wait_for_exit().await?.code(), Some(0));
    for stream in streams {
        assert_eq!(stream.rest().await?, []);
    }
    Ok(())
}
