//! One connection's worth of work: deliveries, task results, stop.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use broker::{AckHandle, BrokerError, Commands, Lost, Settlement};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::handler::CommandHandler;
use crate::health::Health;
use crate::shutdown::Shutdown;

/// Extra time after the grace, once to release leases and once to requeue messages: database and broker answer in milliseconds, or not at all.
const SETTLING: Duration = Duration::from_secs(2);

/// The interval of the liveness heartbeat.
pub(crate) const BEAT: Duration = Duration::from_secs(5);
/// No delivery is held longer: RabbitMQ takes it away then.
const LONGEST: Duration = Duration::from_mins(30);

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The worker was told to stop.
    Stopped,
    /// The broker was lost.
    Lost(String),
}

pub(crate) struct Session {
    messages: Commands,
    handler: CommandHandler,
    grace: Duration,
    shutdown: Shutdown,
    tasks: JoinSet<Result<(), BrokerError>>,
    /// The messages that are handled, since when, by task.
    held: HashMap<Id, (Instant, AckHandle)>,
    health: Health,
}

impl Session {
    /// A session that ends with `stop`, and gives its jobs the `grace` to finish then.
    pub(crate) fn new(
        messages: Commands,
        handler: CommandHandler,
        grace: Duration,
        stop: &CancellationToken,
        health: &Health,
    ) -> Self {
        // Jobs stop with the session, also where the broker is lost: their images in flight are kept, and the rest is delivered anew.
        let shutdown = Shutdown { stop: stop.child_token(), ..Shutdown::default() };
        let (tasks, held) = (JoinSet::new(), HashMap::new());
        Self { messages, handler, grace, shutdown, tasks, held, health: health.clone() }
    }

    /// Handles messages until `stop`, or until the broker is lost. Its consumer of dead-lettered messages is lost when `dead_lettered` completes.
    pub(crate) async fn serve(mut self, stop: &CancellationToken, dead_lettered: impl Future<Output = ()>) -> Ended {
        let mut dead_lettered = pin!(dead_lettered);
        let mut beat = interval(BEAT);
        let lost = loop {
            self.health.set_jobs(self.tasks.len());
            tokio::select! {
                _ = beat.tick() => self.beat(),
                () = stop.cancelled() => break None,
                // The broker sends no more unsettled messages than there are slots. Its loss must be noticed with all slots taken too.
                next = self.messages.next() => match next {
                    Ok(message) => {
                        // Urgent messages overtake others, so that their age says nothing about the queue.
                        if let Some(published) = message.published().filter(|_| !message.is_urgent()) {
                            self.health.queue(|queue| queue.took(published));
                        }
                        let ack = message.ack.clone();
                        let task = self.tasks.spawn(self.handler.clone().handle(message, self.shutdown.clone()));
                        self.held.insert(task.id(), (Instant::now(), ack));
                    }
                    Err(Lost(cause)) => break Some(cause),
                },
                Some(ended) = self.tasks.join_next_with_id() => {
                    if let Err(error) = self.release(ended).await {
                        break Some(error.to_string());
                    }
                }
                () = &mut dead_lettered => break Some("no dead-lettered messages are delivered any more".to_owned()),
            }
        };
        self.shutdown.stop.cancel();
        let grace = self.grace;
        match lost {
            None => {
                let deadline = Instant::now() + grace;
                self.health.set_stopping();
                info!(jobs = self.tasks.len(), ?grace, "stopping: no new image is begun");
                // A broker that does not answer sends nothing either.
                let _ = timeout_at(deadline, self.messages.stop()).await;
                self.finish_until(sleep_until(deadline)).await;
                Ended::Stopped
            }
            Some(cause) => {
                self.health.set_broker(false);
                warn!(jobs = self.tasks.len(), cause, "the broker is lost; images in flight are finished and kept");
                // However long that takes, since they are paid for and each of their waits has its own bound; unless the worker is told to stop.
                self.finish_until(async {
                    stop.cancelled().await;
                    sleep(grace).await;
                })
                .await;
                Ended::Lost(cause)
            }
        }
    }

    /// Waits for the jobs to end; what is left when the time is `over` is dropped, and its messages return to the queue.
    async fn finish_until(mut self, over: impl Future<Output = ()>) {
        let mut over = pin!(over);
        let mut beat = interval(BEAT);
        loop {
            self.health.set_jobs(self.tasks.len());
            tokio::select! {
                _ = beat.tick() => self.beat(),
                ended = self.tasks.join_next_with_id() => match ended {
                    Some(ended) => drop(self.release(ended).await),
                    None => return,
                },
                () = &mut over => break,
            };
        }
        warn!(jobs = self.tasks.len(), "the grace is over; what is in flight is dropped");
        self.shutdown.grace_over.cancel();
        let deadline = Instant::now() + SETTLING;
        while let Ok(Some(ended)) = timeout_at(deadline, self.tasks.join_next_with_id()).await {
            let _ = self.release(ended).await;
        }
        self.tasks.shutdown().await;
        self.health.set_jobs(0);
        let deadline = Instant::now() + SETTLING;
        for (_, (_, ack)) in self.held.drain() {
            // Where this fails the broker takes it back by itself when the connection closes.
            let _ = timeout_at(deadline, ack.settle(Settlement::Requeue)).await;
        }
    }

    /// Reports liveness, unless a message is held for too long: all waits of a job are bounded, so that it hangs.
    fn beat(&self) {
        if self.held.values().all(|(since, _)| since.elapsed() < LONGEST) {
            self.health.beat();
        }
    }

    /// Releases the slot of a task that has ended. One that panicked has not settled its message.
    async fn release(&mut self, ended: Result<(Id, Result<(), BrokerError>), JoinError>) -> Result<(), BrokerError> {
        let failed = match ended {
            Ok((id, result)) => {
                self.held.remove(&id);
                return result;
            }
            Err(failed) => failed,
        };
        error!(error = %failed, "a job panicked; its command returns to the queue");
        let held = self.held.remove(&failed.id());
        let took = held.as_ref().map(|(since, _)| since.elapsed()).unwrap_or_default();
        self.handler.metrics().delivery("panicked", "panic", "panic", took);
        if let Some((_, ack)) = held
            && let Err(error) = ack.settle(Settlement::Requeue).await
        {
            warn!(%error, "a message was not settled; the broker delivers it again");
        }
        Ok(())
    }
}
