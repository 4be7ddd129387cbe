//! One connection's worth of work.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::broker::{Commands, Lost, Settlement, Unsettled};
use crate::health::Health;
use crate::intake::Intake;

/// How a session ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// We were told to stop.
    Stopped,
    /// The broker went away.
    Lost(String),
}

pub(super) struct Session {
    commands: Commands,
    intake: Intake,
    max_in_flight: usize,
    grace: Duration,
    jobs: JoinSet<Settlement>,
    unsettled: HashMap<Id, Unsettled>,
}

impl Session {
    pub(super) fn new(commands: Commands, intake: Intake, max_in_flight: usize, grace: Duration) -> Self {
        Self { commands, intake, max_in_flight, grace, jobs: JoinSet::new(), unsettled: HashMap::new() }
    }

    /// Takes commands until `stop`, or until the broker is lost.
    pub(super) async fn serve(mut self, health: &Health, stop: &CancellationToken) -> Ended {
        // Where the broker is lost, jobs stop too: their images in flight are kept, and the rest is delivered anew.
        let jobs_stop = stop.child_token();
        let lost = loop {
            let has_slot = self.jobs.len() < self.max_in_flight;
            tokio::select! {
                () = stop.cancelled() => break None,
                next = self.commands.next(), if has_slot => match next {
                    Ok((incoming, unsettled)) => {
                        let task = self.jobs.spawn(self.intake.clone().handle(incoming, jobs_stop.clone()));
                        self.unsettled.insert(task.id(), unsettled);
                    }
                    Err(lost) => break Some(lost),
                },
                Some(ended) = self.jobs.join_next_with_id() => self.settle(ended).await,
            }
        };
        match lost {
            None => self.drain(health).await,
            Some(Lost(cause)) => {
                health.set_broker(false);
                jobs_stop.cancel();
                warn!(jobs = self.jobs.len(), "the broker is lost; images in flight are finished and kept");
                self.finish_until(None).await;
                Ended::Lost(cause)
            }
        }
    }

    /// Takes nothing new, lets images in flight finish within the grace, and hands back the rest.
    async fn drain(mut self, health: &Health) -> Ended {
        health.set_stopping();
        info!(jobs = self.jobs.len(), grace = ?self.grace, "stopping: no new image is begun");
        let deadline = Instant::now() + self.grace;
        self.commands.stop().await;
        self.finish_until(Some(deadline)).await;
        if !self.jobs.is_empty() {
            warn!(jobs = self.jobs.len(), "the grace is over; what is in flight is dropped");
        }
        self.jobs.shutdown().await;
        for (_, unsettled) in self.unsettled.drain() {
            // Where this fails the broker takes it back by itself when the connection closes.
            let _ = unsettled.settle(Settlement::Return).await;
        }
        Ended::Stopped
    }

    async fn finish_until(&mut self, deadline: Option<Instant>) {
        loop {
            let ended = match deadline {
                None => self.jobs.join_next_with_id().await,
                Some(deadline) => match timeout_at(deadline, self.jobs.join_next_with_id()).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                },
            };
            match ended {
                None => return,
                Some(ended) => self.settle(ended).await,
            }
        }
    }

    /// The one place where the broker hears what became of a command.
    async fn settle(&mut self, ended: Result<(Id, Settlement), JoinError>) {
        let (id, settlement) = match ended {
            Ok((id, settlement)) => (id, settlement),
            Err(failed) => {
                error!(error = %failed, "a job panicked; its command goes back to the queue");
                (failed.id(), Settlement::Return)
            }
        };
        if let Some(unsettled) = self.unsettled.remove(&id)
            && let Err(error) = unsettled.settle(settlement).await
        {
            warn!(%error, ?settlement, "a command could not be settled; the broker delivers it again");
        }
    }
}
