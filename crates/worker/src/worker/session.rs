//! One connection's worth of work.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::broker::{Commands, Lost, Settlement, Unsettled};
use crate::health::Health;
use crate::intake::Intake;
use crate::job::Stopping;
use crate::telemetry::metrics::JobOutcome;

/// Handing back what is dropped may take this much longer than the grace, once for its jobs and once for what they have left: database and broker answer in
/// milliseconds, or not at all.
const SETTLING: Duration = Duration::from_secs(2);

/// Between two signs that the loop goes on.
pub(super) const BEAT: Duration = Duration::from_secs(5);
/// No delivery is held for so long: RabbitMQ takes it away then.
const LONGEST: Duration = Duration::from_mins(30);

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
    unsettled: HashMap<Id, (Instant, Unsettled)>,
    health: Health,
}

impl Session {
    pub(super) fn new(commands: Commands, intake: Intake, grace: Duration, health: &Health) -> Self {
        let (stopping, jobs, unsettled) = (Stopping::default(), JoinSet::new(), HashMap::new());
        Self { commands, intake, grace, stopping, jobs, unsettled, health: health.clone() }
    }

    /// Takes commands until `stop`, or until the broker is lost. `deaf` ends where something else is not heard of any more.
    pub(super) async fn serve(mut self, stop: &CancellationToken, deaf: impl Future<Output = ()>) -> Ended {
        // Where the broker is lost, jobs stop too: their images in flight are kept, and the rest is delivered anew.
        self.stopping.soon = stop.child_token();
        let mut deaf = pin!(deaf);
        let mut beat = interval(BEAT);
        let lost = loop {
            self.health.set_jobs(self.jobs.len());
            tokio::select! {
                _ = beat.tick() => self.beat(),
                () = stop.cancelled() => break None,
                // No more comes than there are slots, since the broker sends no more unsettled commands than that. That it is lost
                // must be noticed with all slots taken too.
                next = self.commands.next() => match next {
                    Ok((incoming, unsettled)) => {
                        // An urgent one has overtaken others.
                        if let Some(published) = incoming.published().filter(|_| !incoming.is_urgent()) {
                            self.health.queue(|queue| queue.took(published));
                        }
                        let task = self.jobs.spawn(self.intake.clone().handle(incoming, self.stopping.clone()));
                        self.unsettled.insert(task.id(), (Instant::now(), unsettled));
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
                self.health.set_stopping();
                info!(jobs = self.jobs.len(), ?grace, "stopping: no new image is begun");
                // A broker that does not answer sends nothing either.
                let _ = timeout_at(deadline, self.commands.stop()).await;
                self.finish_until(sleep_until(deadline)).await;
                Ended::Stopped
            }
            Some(cause) => {
                self.health.set_broker(false);
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
        let mut beat = interval(BEAT);
        loop {
            self.health.set_jobs(self.jobs.len());
            tokio::select! {
                _ = beat.tick() => self.beat(),
                ended = self.jobs.join_next_with_id() => match ended {
                    Some(ended) => drop(self.settle(ended).await),
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
        self.health.set_jobs(0);
        let deadline = Instant::now() + SETTLING;
        for (_, (_, unsettled)) in self.unsettled.drain() {
            // Where this fails the broker takes it back by itself when the connection closes.
            let _ = timeout_at(deadline, unsettled.settle(Settlement::Return)).await;
        }
    }

    /// Tells that the loop goes on, unless a job does not: whatever it waits for has a bound, so that it hangs.
    fn beat(&self) {
        if self.unsettled.values().all(|(taken, _)| taken.elapsed() < LONGEST) {
            self.health.beat();
        }
    }

    /// The one place where the broker hears what became of a command.
    async fn settle(&mut self, ended: Result<(Id, Settlement), JoinError>) -> Settlement {
        let (id, settlement) = match ended {
            Ok((id, settlement)) => (id, settlement),
            Err(failed) => {
                error!(error = %failed, "a job panicked; its command goes back to the queue");
                let taken = self.unsettled.get(&failed.id()).map(|(taken, _)| taken.elapsed());
                self.intake.metrics().delivery(JobOutcome::Panicked, taken.unwrap_or_default());
                (failed.id(), Settlement::Return)
            }
        };
        if let Some((_, unsettled)) = self.unsettled.remove(&id)
            && let Err(error) = unsettled.settle(settlement).await
        {
            warn!(%error, ?settlement, "a command could not be settled; the broker delivers it again");
        }
        settlement
    }
}
