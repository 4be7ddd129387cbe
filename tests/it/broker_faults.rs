//! A broker that runs but does not accept messages: under a memory alarm, or with a queue that does not respond.

use anyhow::Result;
use dev_services::services::{RabbitMq, ServiceProvider, ServiceUrls};
use dev_services::wait::wait_until;
use integration_tests::{Database, TestEnv, WAIT_TIMEOUT, command};
use serde_json::json;

/// An environment on a broker of its own, because the faults concern the whole broker.
struct OwnBroker {
    rabbitmq: RabbitMq,
    env: TestEnv,
    /// Dropped last: it owns the broker's folder.
    _provider: ServiceProvider,
}

impl OwnBroker {
    async fn start() -> Result<Self> {
        let provider = ServiceProvider::new()?;
        let rabbitmq = provider.own_rabbitmq().await?;
        let urls = ServiceUrls {
            amqp_url: rabbitmq.amqp_url.clone(),
            rabbitmq_api_url: rabbitmq.api_url.clone(),
            ..ServiceUrls::from_env()?
        };
        let env = TestEnv::with_services(&urls, Database::Sqlite).await?;
        Ok(Self { rabbitmq, env, _provider: provider })
    }

    /// Raises a memory alarm: the broker blocks each connection that publishes.
    async fn raise_alarm(&self) -> Result<()> {
        self.rabbitmq.control(&["set_vm_memory_high_watermark", "0"]).await.map(drop)
    }

    async fn clear_alarm(&self) -> Result<()> {
        self.rabbitmq.control(&["set_vm_memory_high_watermark", "0.6"]).await.map(drop)
    }

    /// The state of the connection with this name; empty if there is none.
    async fn connection_state(&self, name: &str) -> Result<String> {
        let arguments = ["--quiet", "list_connections", "state", "client_properties"];
        let printed = self.rabbitmq.control(&arguments).await?;
        let line = printed.lines().find(|line| line.contains(&format!("\"{name}\"")));
        Ok(line.and_then(|line| line.split('\t').next()).unwrap_or_default().to_owned())
    }

    /// Calls a function of the Erlang module `sys` with the process of a queue: `suspend` or `resume`.
    async fn control_queue_process(&self, function: &str, queue: &str) -> Result<()> {
        let vhost = self.env.amqp_url.rsplit('/').next().unwrap_or_default();
        let call = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{vhost}\">>, queue, <<\"{queue}\">>)), \
             sys:{function}(amqqueue:get_pid(Q))."
        );
        self.rabbitmq.control(&["eval", &call]).await.map(drop)
    }

    async fn stop(self) {
        let Self { rabbitmq, env, _provider } = self;
        drop(env);
        rabbitmq.stop().await;
    }
}

#[tokio::test]
async fn memory_alarm_blocks_only_the_publishing_connection() -> Result<()> {
    let mut broker = OwnBroker::start().await?;
    let released = broker.env.folder().join("released");
    broker.env.set("ASSET_WORKER_PAUSE_AT", "before_event");
    broker.env.set("ASSET_WORKER_PAUSE_UNTIL", released.display().to_string());
    let worker = broker.env.start_ready_worker().await?;
    let producer = broker.env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    worker.wait_for_log("\"point\":\"before_event\"").await?;
    assert_eq!(worker.metrics().await?.value("asset_worker_broker_publishing_blocked", &[]), Some(0.0));

    broker.raise_alarm().await?;
    std::fs::write(&released, "")?;
    let blocked = json!("publishing is blocked: the broker is low on memory or disk space");
    wait_until("the blocked connection", WAIT_TIMEOUT, async || {
        worker.probe("readyz").await.ok().filter(|(status, body)| *status == 503 && body["broker"] == blocked)
    })
    .await?;
    assert_eq!(worker.metrics().await?.value("asset_worker_broker_publishing_blocked", &[]), Some(1.0));
    // The broker still reads acknowledgements and heartbeats from the other one.
    assert_eq!(broker.connection_state("asset-worker publishing").await?, "blocked");
    let consuming = broker.connection_state("asset-worker").await?;
    assert!(["running", "blocking"].contains(&consuming.as_str()), "{consuming}");

    broker.clear_alarm().await?;
    events.wait_for_data("completed").await?;
    wait_until("the worker to be ready", WAIT_TIMEOUT, async || {
        worker.probe("readyz").await.ok().filter(|(status, _)| *status == 200)
    })
    .await?;
    assert!(!worker.log().contains("broker connection lost"), "{}", worker.log());
    drop(worker);
    broker.stop().await;
    Ok(())
}

/// Events that may be lost are not confirmed: the job goes on, and the session too.
#[tokio::test]
async fn unresponsive_progress_queue_does_not_end_the_session() -> Result<()> {
    let broker = OwnBroker::start().await?;
    let worker = broker.env.start_ready_worker().await?;
    let producer = broker.env.connect_broker().await?;
    producer.bind_classic_queue("dashboard", "assets.generation.progress").await?;
    producer.bind_classic_queue("renderer", "assets.generation.completed").await?;
    broker.control_queue_process("suspend", "dashboard").await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    wait_until("the terminal event", WAIT_TIMEOUT, async || {
        (producer.ready_count("renderer").await.ok()? == 1).then_some(())
    })
    .await?;
    assert!(worker.log().contains("event not published"), "{}", worker.log());
    assert!(!worker.log().contains("broker connection lost"), "{}", worker.log());
    broker.control_queue_process("resume", "dashboard").await?;
    drop(worker);
    broker.stop().await;
    Ok(())
}

/// A terminal event is not confirmed, because a queue that is bound to it does not respond.
#[tokio::test]
async fn unresponsive_event_queue_holds_up_no_other_job() -> Result<()> {
    let mut broker = OwnBroker::start().await?;
    broker.env.set("WORKER_JOB_RETRY_DELAYS", "1m");
    broker.env.set("STABILITY_RETRY_DELAYS", "none");
    let worker = broker.env.start_ready_worker().await?;
    let producer = broker.env.connect_broker().await?;
    producer.bind_classic_queue("renderer", "assets.generation.completed").await?;
    broker.control_queue_process("suspend", "renderer").await?;
    producer.publish(&command(1, &["A fox"], &json!({}))).await?;
    worker.wait_for_log("\"job completed\"").await?;

    producer.publish(&command(2, &["A bear [fault:status=503 x1]"], &json!({"cache": "never"}))).await?;
    producer.publish_bytes(b"not a command", None).await?;
    wait_until("the other job on its retry queue", WAIT_TIMEOUT, async || {
        (producer.ready_count("assets.generate.retry.1m").await.ok()? == 1).then_some(())
    })
    .await?;
    producer.take_dead_letter().await?;
    assert!(!worker.log().contains("no response within"), "the event still waits for its confirm: {}", worker.log());

    // Then its channel is closed and the session ends. The event is published again.
    worker.wait_for_log("broker connection lost; images in flight").await?;
    assert!(worker.log().contains("a message was not confirmed: no response within 15s"), "{}", worker.log());
    broker.control_queue_process("resume", "renderer").await?;
    wait_until("both jobs on their retry queue", WAIT_TIMEOUT, async || {
        (producer.ready_count("assets.generate.retry.1m").await.ok()? == 2).then_some(())
    })
    .await?;
    drop(worker);
    broker.stop().await;
    Ok(())
}
