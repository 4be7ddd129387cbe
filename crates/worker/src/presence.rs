//! Tells through the database that this worker runs, for the pages of `serve`.

use std::sync::LazyLock;
use std::time::Duration;

use store::{Heartbeat, Store, WORKER_HEARTBEAT_INTERVAL};
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;
use uuid::Uuid;

use crate::error_chain::error_chain;
use crate::health::Health;

/// How long the database may take. A worker that stops waits for it twice at most.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// The host name of this machine; in Kubernetes, the name of the pod.
pub(crate) fn host_name() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    &NAME
}

/// This process among the running workers.
pub(crate) struct Presence {
    id: Uuid,
    started_at: OffsetDateTime,
    store: Store,
}

impl Presence {
    /// Nothing is written yet.
    pub(crate) fn new(store: Store) -> Self {
        Self { id: Uuid::now_v7(), started_at: OffsetDateTime::now_utc(), store }
    }

    /// Records a heartbeat at each interval until `end` is cancelled; then removes the worker.
    pub(crate) async fn run(&self, health: &Health, end: &CancellationToken) {
        let mut ticks = interval(WORKER_HEARTBEAT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A heartbeat in progress ends first, so that none follows the removal.
        while end.run_until_cancelled(ticks.tick()).await.is_some() {
            let heartbeat = Heartbeat {
                id: self.id,
                host: host_name(),
                version: env!("CARGO_PKG_VERSION"),
                started_at: self.started_at,
                jobs: health.jobs_in_flight(),
            };
            // Only the pages miss it; a database that is away is reported by others.
            match timeout(HEARTBEAT_TIMEOUT, self.store.record_heartbeat(heartbeat)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(error = error_chain(&error), "heartbeat could not be recorded"),
                Err(_) => debug!("heartbeat could not be recorded: the database did not answer"),
            }
        }
        match timeout(HEARTBEAT_TIMEOUT, self.store.remove_worker(self.id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(error = error_chain(&error), "the worker stays in the list of workers"),
            Err(_) => debug!("the worker stays in the list of workers: the database did not answer"),
        }
    }
}
