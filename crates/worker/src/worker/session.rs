//! One connection's worth of work.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::broker::{Commands, Lost, Settlement, Unsettled};
use crate::health::Health;
use crate::intake::Intake;
use crate::job::Stopping;

/// Handing back what is dropped may take this much longer than the grace, once for its jobs and once for what they have left: database and broker answer in
/// milliseconds, or not at all.
const SETTLING: Duration = Duration::from_secs(2);

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
    grace: Duration,
    stopping: Stopping,
    jobs: JoinSet<Settlement>,
    unsettled: HashMap<Id, Unsettled>,
}

impl Session {
    pub(super) fn new(commands: Commands, intake: Intake, grace: Duration) -> Self {
        Self { commands, intake, grace, stopping: Stopping::default(), jobs: JoinSet::new(), unsettled: HashMap::new() }
    }

    /// Takes commands until `stop`, or until the broker is lost. `deaf` ends where something else is not heard of any more.
    pub(super) async fn serve(
        mut self,
        health: &Health,
        stop: &CancellationToken,
        deaf: impl Future<Output = ()>,
    ) -> Ended {
        // Where the broker is lost, jobs stop too: their images in flight are kept, and the rest is delivered anew.
        self.stopping.soon = stop.child_token();
        let mut deaf = pin!(deaf);
        let lost = loop {
            tokio::select! {
                () = stop.cancelled() => break None,
                // No more comes than there are slots, since the broker sends no more unsettled commands than that. That it is lost
                // must be noticed with all slots taken too.
                next = self.commands.next() => match next {
                    Ok((incoming, unsettled)) => {
                        let task = self.jobs.spawn(self.intake.clone().handle(incoming, self.stopping.clone()));
                        self.unsettled.insert(task.id(), unsettled);
                    }
                    Err(Lost(cause)) => break Some(cause),
                },
                Some(ended) = self.jobs.join_next_with_id() => {
                    if let Settlement::GiveUp = self.settle(ended).await {
                        break Some("it takes no messages from us".to_owned());
                    }
                }
                () = &mut deaf => break Some("no fallen commands are seen any more".to_owned()),
            }
        };
        self.stopping.soon.cancel();
        let grace = self.grace;
        match lost {
            None => {
                let deadline = Instant::now() + grace;
                health.set_stopping();
                info!(jobs = self.jobs.len(), ?grace, "stopping: no new image is begun");
                // A broker that does not answer sends nothing either.
                let _ = timeout_at(deadline, self.commands.stop()).await;
                self.finish_until(sleep_until(deadline)).await;
                Ended::Stopped
            }
            Some(cause) => {
                health.set_broker(false);
                warn!(jobs = self.jobs.len(), cause, "the broker is lost; images in flight are finished and kept");
                // However long that takes, since they are paid for, and each of their waits has its own bound; unless we are told to stop.
                self.finish_until(async {
                    stop.cancelled().await;
                    sleep(grace).await;
                })
                .await;
                Ended::Lost(cause)
            }
        }
    }

    /// Lets jobs come to their end; what is left when the time is `over` is dropped, and its command handed back.
    async fn finish_until(mut self, over: impl Future<Output = ()>) {
        let mut over = pin!(over);
        loop {
            tokio::select! {
                ended = self.jobs.join_next_with_id() => match ended {
                    Some(ended) => self.settle(ended).await,
                    None => return,
                },
                () = &mut over => break,
            };
        }
        warn!(jobs = self.jobs.len(), "the grace is over; what is in flight is dropped");
        self.stopping.now.cancel();
        let deadline = Instant::now() + SETTLING;
        while let Ok(Some(ended)) = timeout_at(deadline, self.jobs.join_next_with_id()).await {
            self.settle(ended).await;
        }
        self.jobs.shutdown().await;
        let deadline = Instant::now() + SETTLING;
        for (_, unsettled) in self.unsettled.drain() {
            // Where this fails the broker takes it back by itself when the connection closes.
            let _ = timeout_at(deadline, unsettled.settle(Settlement::Return)).await;
        }
    }

    /// The one place where the broker hears what became of a command.
    async fn settle(&mut self, ended: Result<(Id, Settlement), JoinError>) -> Settlement {
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
        settlement
    }
}
