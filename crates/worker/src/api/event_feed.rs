//! Events of jobs as they happen, for any number of streams over one queue.
//!
//! The queue receives `started` and `progress`. Terminal events must reach a queue of another program, or are kept as not
//! published, so this program does not consume them: it reads which of the watched jobs have ended.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use broker::{ConnectionLost, EventWatcher, WatchedMessage};
use domain::event::EventKind;
use serde::Deserialize;
use store::Store;
use tokio::sync::broadcast;
use tokio::time::sleep;
use tracing::warn;
use uuid::Uuid;

use crate::error_chain::error_chain;

/// Interval at which the ends of watched jobs are read.
const END_INTERVAL: Duration = Duration::from_secs(1);
/// Events that a slow stream may be behind; then it reads the database instead.
const BACKLOG: usize = 256;

/// News of a job.
#[derive(Debug, Clone)]
pub(super) enum News {
    /// An event, with its body.
    Event { id: Uuid, kind: EventKind, body: Arc<str> },
    /// Something happened that only the database tells: the job ended, or events may have been missed.
    ReadDatabase,
}

/// The jobs that are watched.
#[derive(Default)]
pub(super) struct EventFeed {
    /// Entries without receivers are removed before the ends of jobs are read.
    watched: Mutex<HashMap<Uuid, broadcast::Sender<News>>>,
}

/// The attributes of an event that say to whom it goes.
#[derive(Deserialize)]
struct Header {
    id: Uuid,
    #[serde(rename = "type")]
    kind: String,
    data: JobOf,
}

#[derive(Deserialize)]
struct JobOf {
    job_id: Uuid,
}

impl EventFeed {
    /// Starts to watch a job, until the receiver is dropped.
    pub(super) fn watch(&self, job_id: Uuid) -> broadcast::Receiver<News> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.entry(job_id).or_insert_with(|| broadcast::Sender::new(BACKLOG)).subscribe()
    }

    /// Passes events on until the connection is lost.
    pub(super) async fn run(&self, mut events: EventWatcher) -> ConnectionLost {
        // Events before this moment may have been missed.
        self.tell_all();
        loop {
            match events.next().await {
                Ok(WatchedMessage::Event(body)) => self.pass_on(&body),
                Ok(WatchedMessage::DeadLetter { .. }) => {}
                Err(lost) => return lost,
            }
        }
    }

    fn pass_on(&self, body: &[u8]) {
        let Ok(body) = std::str::from_utf8(body) else { return };
        let Ok(Header { id, kind, data }) = serde_json::from_str::<Header>(body) else { return };
        let Some(kind) = EventKind::parse(&kind) else { return };
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.get(&data.job_id) {
            // Fails only without receivers.
            let _ = sender.send(News::Event { id, kind, body: body.into() });
        }
    }

    fn tell_all(&self) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in watched.values() {
            let _ = sender.send(News::ReadDatabase);
        }
    }

    /// Tells the streams of jobs that have ended; never returns.
    pub(super) async fn poll_ends(&self, store: &Store) -> Infallible {
        loop {
            sleep(END_INTERVAL).await;
            let ids: Vec<Uuid> = {
                let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
                watched.retain(|_, sender| sender.receiver_count() > 0);
                watched.keys().copied().collect()
            };
            if ids.is_empty() {
                continue;
            }
            match store.find_ended_jobs(&ids).await {
                Ok(ended) => {
                    let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
                    for sender in ended.iter().filter_map(|job_id| watched.get(job_id)) {
                        let _ = sender.send(News::ReadDatabase);
                    }
                }
                Err(error) => warn!(error = error_chain(&error), "cannot read which watched jobs have ended; retrying"),
            }
        }
    }
}
