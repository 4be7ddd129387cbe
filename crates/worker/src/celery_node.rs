//! This worker as a node of Celery: its name, its remote control and its events.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use broker::{Broker, BrokerError, PublishOutcome, Publisher, Settlement, SharedExchange, SharedExchangeKind};
use celery::Reply;
use celery::node::{self, Control, Request};
use domain::command::Command;
use domain::event::{Event, EventKind};
use domain::failure::JobFailureCode;
use domain::outgoing::OutgoingMessage;
use serde_json::{Value, json};
use store::{Store, StoreError};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{interval, sleep, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use crate::error_chain::error_chain;
use crate::event_sink::{EventSink, PublishError};
use crate::outage::retry_store;
use crate::presence::host_name;
use crate::settings::Settings;

/// The most events that wait to be published; further ones are dropped.
const MAX_WAITING_EVENTS: usize = 1_000;
/// The delay before the node is connected again after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// How long a worker that stops tries to tell it.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// The exchanges of a node, declared as Celery does; its queue is bound to the first.
const EXCHANGES: [SharedExchange; 3] = [
    SharedExchange { name: node::CONTROL_EXCHANGE, kind: SharedExchangeKind::Fanout, is_durable: false },
    SharedExchange { name: node::REPLY_EXCHANGE, kind: SharedExchangeKind::Direct, is_durable: false },
    SharedExchange { name: node::EVENT_EXCHANGE, kind: SharedExchangeKind::Topic, is_durable: true },
];

/// The node name: unique on each host, as that of a Celery worker.
pub(crate) fn name() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| format!("asset-worker-{}@{}", std::process::id(), host_name()));
    &NAME
}

/// What Celery's tools are told about the jobs of this process. Clones share it; without `CELERY_EVENTS` it does nothing.
#[derive(Clone)]
pub(crate) struct CeleryNode(Option<Arc<Shared>>);

struct Shared {
    /// The name of jobs that no Celery task has asked for.
    default_task: String,
    tasks: Vec<String>,
    slots: usize,
    started_at: OffsetDateTime,
    clock: AtomicU64,
    processed: AtomicU64,
    active: Mutex<HashMap<Uuid, ActiveTask>>,
    events: mpsc::Sender<OutgoingMessage>,
    waiting: tokio::sync::Mutex<mpsc::Receiver<OutgoingMessage>>,
}

/// A job that is running.
struct ActiveTask {
    id: String,
    root: String,
    name: String,
    arguments: Value,
    started_at: OffsetDateTime,
}

impl CeleryNode {
    pub(crate) fn new(settings: &Settings) -> Self {
        let (events, waiting) = mpsc::channel(MAX_WAITING_EVENTS);
        let shared = || Shared {
            default_task: settings.celery_tasks.first().cloned().unwrap_or_else(|| "assets.generate".to_owned()),
            tasks: settings.celery_tasks.clone(),
            slots: settings.jobs.max_in_flight.get(),
            started_at: OffsetDateTime::now_utc(),
            clock: AtomicU64::new(1),
            processed: AtomicU64::new(0),
            active: Mutex::default(),
            events,
            waiting: tokio::sync::Mutex::new(waiting),
        };
        Self(settings.celery_events.then(|| Arc::new(shared())))
    }

    /// Returns the destination of a job's events, by which Celery's tools see the job until it is dropped.
    pub(crate) fn watch<'a>(
        &self,
        command: &Command,
        reply: Option<&Reply>,
        publisher: &'a Publisher,
    ) -> WatchedEvents<'a> {
        let watch = |shared: &Arc<Shared>| {
            let job_id = command.job_id;
            let id = reply.map_or_else(|| job_id.to_string(), |reply| reply.id.clone());
            let task = ActiveTask {
                root: reply.map_or_else(|| id.clone(), |reply| reply.root_id.clone()),
                name: reply.map_or_else(|| shared.default_task.clone(), |reply| reply.task.clone()),
                arguments: json!({"project_id": command.project_id, "images": command.image_descriptions.len()}),
                started_at: OffsetDateTime::now_utc(),
                id,
            };
            shared.active.lock().unwrap_or_else(PoisonError::into_inner).insert(job_id, task);
            (shared.clone(), job_id)
        };
        WatchedEvents { publisher, watched: self.0.as_ref().map(watch) }
    }

    /// Reports the end of a job.
    pub(crate) fn report_end(&self, job_id: Uuid, terminal: &Event, stored_reply: Option<&Value>) {
        let Some(shared) = &self.0 else { return };
        let id = stored_reply.and_then(Reply::from_stored).map_or_else(|| job_id.to_string(), |reply| reply.id);
        let envelope: Value = serde_json::from_str(&terminal.body).unwrap_or_default();
        let data = &envelope["data"];
        let counts = json!({"succeeded": data["succeeded"], "failed": data["failed"], "cost_usd": data["cost_usd"]});
        let runtime = data["duration_ms"].as_f64().unwrap_or_default() / 1_000.0;
        let code = data["error"]["code"].as_str().unwrap_or_default();
        let is_expired = code == JobFailureCode::Expired.as_str();
        shared.processed.fetch_add(1, Ordering::Relaxed);
        match terminal.kind {
            EventKind::Completed => {
                shared.send("task-succeeded", json!({"uuid": id, "result": counts.to_string(), "runtime": runtime}));
            }
            _ if is_expired || code == JobFailureCode::Cancelled.as_str() => {
                let fields = json!({"uuid": id, "terminated": false, "signum": null, "expired": is_expired});
                shared.send("task-revoked", fields);
            }
            _ => {
                let message = data["error"]["message"].as_str().unwrap_or_default();
                let exception = format!("RuntimeError({code:?}, {message:?})");
                shared.send("task-failed", json!({"uuid": id, "exception": exception, "traceback": null}));
            }
        }
    }

    /// Answers remote control and publishes events; never returns.
    pub(crate) async fn run(&self, broker: &Broker, publisher: &Publisher, store: &Store) -> Infallible {
        let Some(shared) = &self.0 else { return pending().await };
        loop {
            let Err(error) = shared.connect(broker, publisher, store).await else { continue };
            warn!(error = error_chain(&error), delay = ?RETRY_DELAY, "Celery's tools do not see this worker; retrying");
            sleep(RETRY_DELAY).await;
        }
    }

    /// Tells Celery's tools that the worker is stopping.
    pub(crate) async fn stop(&self, publisher: &Publisher) {
        if let Some(shared) = &self.0 {
            // Without it they notice a minute later that the heartbeats are missing.
            let event = shared.event("worker-offline", shared.state());
            let _ = timeout(STOP_TIMEOUT, publisher.publish_transient(&event)).await;
        }
    }
}

/// Publishes the events of a job that this process runs.
pub(crate) struct WatchedEvents<'a> {
    publisher: &'a Publisher,
    watched: Option<(Arc<Shared>, Uuid)>,
}

#[async_trait]
impl EventSink for WatchedEvents<'_> {
    async fn publish(&self, event: &Event) -> Result<PublishOutcome, PublishError> {
        if let Some((shared, job_id)) = self.watched.as_ref().filter(|_| event.kind == EventKind::Started) {
            shared.report_start(*job_id);
        }
        EventSink::publish(self.publisher, event).await
    }

    async fn send(&self, message: &OutgoingMessage) -> Result<(), PublishError> {
        self.publisher.send(message).await
    }
}

impl Drop for WatchedEvents<'_> {
    fn drop(&mut self) {
        if let Some((shared, job_id)) = &self.watched {
            shared.active.lock().unwrap_or_else(PoisonError::into_inner).remove(job_id);
        }
    }
}

impl Shared {
    fn event(&self, kind: &str, fields: Value) -> OutgoingMessage {
        node::event(kind, name(), self.clock.fetch_add(1, Ordering::Relaxed), OffsetDateTime::now_utc(), fields)
    }

    fn send(&self, kind: &str, fields: Value) {
        // An event that finds no place is dropped: tools that miss it show an older state.
        let _ = self.events.try_send(self.event(kind, fields));
    }

    /// Reports that a job was claimed for the first time.
    fn report_start(&self, job_id: Uuid) {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ActiveTask { id, root, name, arguments, .. }) = active.get(&job_id) else { return };
        let received = json!({
            "uuid": id, "name": name, "args": "()", "kwargs": arguments.to_string(), "root_id": root,
            "parent_id": null, "retries": 0, "eta": null, "expires": null,
        });
        self.send("task-received", received);
        self.send("task-started", json!({"uuid": id}));
    }

    /// The fields of an event about the worker.
    fn state(&self) -> Value {
        json!({
            "freq": node::HEARTBEAT_SECONDS,
            "sw_ident": "asset-worker",
            "sw_ver": env!("CARGO_PKG_VERSION"),
            "sw_sys": "Linux",
            "active": self.active.lock().unwrap_or_else(PoisonError::into_inner).len(),
            "processed": self.processed.load(Ordering::Relaxed),
            "loadavg": [0.0, 0.0, 0.0],
        })
    }

    async fn connect(&self, broker: &Broker, publisher: &Publisher, store: &Store) -> Result<(), NodeError> {
        let mut mailbox = broker.open_mailbox(&node::control_queue(name()), &EXCHANGES).await?;
        let mut waiting = self.waiting.lock().await;
        publisher.publish_transient(&self.event("worker-online", self.state())).await?;
        info!(node = name(), "Celery's tools see this worker");
        let mut heartbeats = interval(Duration::from_secs(node::HEARTBEAT_SECONDS));
        loop {
            tokio::select! {
                _ = heartbeats.tick() => {
                    publisher.publish_transient(&self.event("worker-heartbeat", self.state())).await?;
                }
                Some(event) = waiting.recv() => publisher.publish_transient(&event).await?,
                message = mailbox.next() => {
                    let message = message?;
                    if let Some(control) = Control::parse(&message.body, name()) {
                        let answer = self.answer(&control.request, store).await?;
                        if let Some(reply) = control.reply(name(), &answer) {
                            publisher.publish_transient(&reply).await?;
                        }
                    }
                    message.ack.settle(Settlement::Acknowledge).await?;
                }
            }
        }
    }

    async fn answer(&self, request: &Request, store: &Store) -> Result<Value, StoreError> {
        Ok(match request {
            Request::Revoke(ids) => {
                // The message is not delivered again, so it is not given up while the database fails.
                let jobs = retry_store(|| find_jobs(ids, store)).await?;
                let cancel = || store.cancel_jobs(&jobs, Some("revoked by Celery's remote control"));
                let cancellation = retry_store(cancel).await?;
                info!(?jobs, ?cancellation, "tasks revoked");
                json!({"ok": format!("tasks {} flagged as revoked", ids.join(", "))})
            }
            Request::Ping => json!({"ok": "pong"}),
            Request::Active => self.list_active(),
            Request::Waiting => json!([]),
            Request::Stats => self.stats(),
            Request::Registered => json!(self.tasks),
            Request::ActiveQueues => json!([{
                "name": "assets.generate",
                "exchange": {"name": "assets.commands", "type": "direct"},
                "routing_key": "generate",
                "durable": true,
            }]),
            Request::Unknown(method) => node::unknown_method(method),
        })
    }

    fn list_active(&self) -> Value {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let describe = |task: &ActiveTask| {
            json!({
                "id": task.id,
                "name": task.name,
                "args": [],
                "kwargs": task.arguments,
                "type": task.name,
                "hostname": name(),
                "time_start": node::timestamp(task.started_at),
                "acknowledged": false,
                "delivery_info": {"exchange": "assets.commands", "routing_key": "generate", "redelivered": false},
                "worker_pid": std::process::id(),
            })
        };
        active.values().map(describe).collect()
    }

    fn stats(&self) -> Value {
        let uptime = OffsetDateTime::now_utc() - self.started_at;
        json!({
            "pid": std::process::id(),
            "clock": self.clock.load(Ordering::Relaxed).to_string(),
            "uptime": uptime.whole_seconds(),
            "total": {&self.default_task: self.processed.load(Ordering::Relaxed)},
            "prefetch_count": self.slots,
            "pool": {"implementation": "asset-worker", "max-concurrency": self.slots, "processes": [std::process::id()]},
            "rusage": "N/A",
        })
    }
}

/// The jobs of tasks. A job has the id of its task, unless the arguments of the task name another one.
async fn find_jobs(tasks: &[String], store: &Store) -> Result<Vec<Uuid>, StoreError> {
    let open = store.find_open_jobs_by_reply(tasks).await?;
    let find = |task: &String| open.iter().find(|(_, id)| id == task).map(|(job_id, _)| *job_id);
    Ok(tasks.iter().filter_map(|task| find(task).or_else(|| Uuid::try_parse(task).ok())).collect())
}

/// The node lost its mailbox, or its answer is not known.
#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Connection(#[from] broker::ConnectionLost),
    #[error(transparent)]
    Store(#[from] StoreError),
}
