//! Handles messages over one broker connection, until it is lost or the worker stops.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use broker::{AckHandle, BrokerError, ConnectionLost, Settlement};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, interval, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::consumer::CommandConsumer;
use crate::gate::{AccountGate, Intake};
use crate::handler::CommandHandler;
use crate::health::Health;
use crate::shutdown::Shutdown;

/// Time limit, after the grace period, for releasing leases, and again for requeuing messages.
///
/// A database or broker that is reachable responds within milliseconds, so more time would not help.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval of the liveness heartbeat.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// RabbitMQ's delivery acknowledgement timeout (`consumer_timeout`): the broker takes back a delivery held longer.
const DELIVERY_ACK_TIMEOUT: Duration = Duration::from_mins(30);

/// How a session ended.
#[derive(Debug)]
pub(crate) enum SessionEnd {
    /// The worker was stopped.
    Stopped,
    /// The broker was lost, for this reason.
    BrokerLost(String),
}

pub(crate) struct Session {
    consumer: CommandConsumer,
    gate: AccountGate,
    handler: CommandHandler,
    grace: Duration,
    shutdown: Shutdown,
    tasks: JoinSet<Result<(), BrokerError>>,
    /// The messages in flight by task, each with the time at which its handling started.
    in_flight: HashMap<Id, (Instant, AckHandle)>,
    health: Health,
}

impl Session {
    /// Creates a session that ends when `stop` is cancelled; its jobs then have the grace period `grace` to finish.
    pub(crate) fn new(
        consumer: CommandConsumer,
        gate: &AccountGate,
        handler: CommandHandler,
        grace: Duration,
        stop: &CancellationToken,
        health: &Health,
    ) -> Self {
        // Jobs stop with the session, also if the broker is lost: images in flight are kept, commands are redelivered.
        let shutdown = Shutdown { stop: stop.child_token(), ..Shutdown::default() };
        let (tasks, in_flight) = (JoinSet::new(), HashMap::new());
        let gate = gate.clone();
        Self { consumer, gate, handler, grace, shutdown, tasks, in_flight, health: health.clone() }
    }

    /// Handles messages until `stop` is cancelled or the broker is lost.
    ///
    /// The broker counts as lost for the given cause when `lost` completes.
    pub(crate) async fn serve(mut self, stop: &CancellationToken, lost: impl Future<Output = String>) -> SessionEnd {
        let mut lost = pin!(lost);
        let (gate, can_take_commands) = (self.gate.clone(), AtomicBool::new(false));
        let mut probing = pin!(gate.poll_probes(&can_take_commands));
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        let lost_cause = loop {
            self.health.set_jobs_in_flight(self.tasks.len());
            let (intake, is_consuming) = (self.consumer.intake(), self.consumer.is_consuming());
            let may_start = self.consumer.is_stopped() && self.tasks.is_empty();
            can_take_commands.store(may_start, Ordering::Relaxed);
            tokio::select! {
                _ = heartbeat.tick() => self.report_liveness(),
                () = stop.cancelled() => break None,
                // The prefetch count limits unsettled messages to the number of slots. Polled even with all slots
                // taken, to notice a lost broker.
                next = self.consumer.next() => match next {
                    Ok(None) => {}
                    Ok(Some(message)) => {
                        // Urgent messages overtake others, so their age is no measure of the queue's delay.
                        if let Some(published) = message.published_at().filter(|_| !message.is_urgent()) {
                            self.health.with_queue(|queue| queue.record_taken(published));
                        }
                        let ack = message.ack.clone();
                        let task = self.tasks.spawn(self.handler.clone().handle(message, self.shutdown.clone()));
                        self.in_flight.insert(task.id(), (Instant::now(), ack));
                    }
                    Err(ConnectionLost(cause)) => break Some(cause),
                },
                _ = self.gate.wait_for_other_intake(intake), if is_consuming => {
                    tokio::select! {
                        () = self.consumer.cancel() => {}
                        () = stop.cancelled() => break None,
                    }
                }
                // Only without jobs: the prefetch count of a new consumer does not include messages of the former one.
                intake = self.gate.wait_for_other_intake(Intake::Closed), if may_start => {
                    tokio::select! {
                        started = self.consumer.start(intake) => if let Err(error) = started {
                            break Some(error.to_string());
                        },
                        () = stop.cancelled() => break None,
                    }
                }
                Some(ended) = self.tasks.join_next_with_id() => {
                    if let Err(error) = self.handle_task_end(ended).await {
                        break Some(error.to_string());
                    }
                }
                never = &mut probing => match never {},
                cause = &mut lost => break Some(cause),
            }
        };
        self.shutdown.stop.cancel();
        let grace = self.grace;
        match lost_cause {
            None => {
                let deadline = Instant::now() + grace;
                self.health.set_stopping();
                info!(jobs = self.tasks.len(), ?grace, "shutting down; no new image is started");
                // A broker that does not answer sends no more messages either.
                let _ = timeout_at(deadline, self.consumer.cancel()).await;
                self.drain_until(sleep_until(deadline)).await;
                SessionEnd::Stopped
            }
            Some(cause) => {
                self.health.set_broker_connected(false);
                // No further message is pushed, and counted as delivered, if the connection still works.
                self.cancel_consumer().await;
                warn!(jobs = self.tasks.len(), cause, "broker connection lost; images in flight are finished and kept");
                // No time limit: the images are paid for, and each of their waits has its own bound. A stop of the
                // worker starts the grace period.
                self.drain_until(async {
                    stop.cancelled().await;
                    sleep(grace).await;
                })
                .await;
                SessionEnd::BrokerLost(cause)
            }
        }
    }

    /// Cancels the consumer. A broker that does not answer sends no more messages either.
    async fn cancel_consumer(&mut self) {
        let _ = timeout_at(Instant::now() + SETTLE_TIMEOUT, self.consumer.cancel()).await;
    }

    /// Waits for the jobs to end. When `deadline_passed` completes, drops the others and requeues their messages.
    async fn drain_until(mut self, deadline_passed: impl Future<Output = ()>) {
        let mut deadline_passed = pin!(deadline_passed);
        let mut heartbeat = interval(HEARTBEAT_INTERVAL);
        loop {
            self.health.set_jobs_in_flight(self.tasks.len());
            tokio::select! {
                _ = heartbeat.tick() => self.report_liveness(),
                ended = self.tasks.join_next_with_id() => match ended {
                    Some(ended) => drop(self.handle_task_end(ended).await),
                    None => return,
                },
                () = &mut deadline_passed => break,
            };
        }
        warn!(jobs = self.tasks.len(), "grace period over; aborting the remaining jobs");
        self.shutdown.grace_expired.cancel();
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        while let Ok(Some(ended)) = timeout_at(deadline, self.tasks.join_next_with_id()).await {
            let _ = self.handle_task_end(ended).await;
        }
        self.tasks.shutdown().await;
        self.health.set_jobs_in_flight(0);
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        for (_, (_, ack)) in self.in_flight.drain() {
            // If this fails, the broker requeues the message when the connection closes.
            let _ = timeout_at(deadline, ack.settle(Settlement::Requeue)).await;
        }
    }

    /// Reports liveness, unless a message is held too long: all waits of a job are bounded, so such a job hangs.
    fn report_liveness(&self) {
        if self.in_flight.values().all(|(since, _)| since.elapsed() < DELIVERY_ACK_TIMEOUT) {
            self.health.record_heartbeat();
        }
    }

    /// Frees the slot of a task that has ended; requeues the message of a task that panicked.
    async fn handle_task_end(
        &mut self,
        ended: Result<(Id, Result<(), BrokerError>), JoinError>,
    ) -> Result<(), BrokerError> {
        let join_error = match ended {
            Ok((id, result)) => {
                let held = self.in_flight.remove(&id);
                if result.is_err()
                    && let Some((_, ack)) = held
                {
                    // First, so that the broker does not push the message to this session again.
                    self.cancel_consumer().await;
                    let _ = ack.settle(Settlement::Requeue).await;
                }
                return result;
            }
            Err(join_error) => join_error,
        };
        error!(error = %join_error, "job panicked; returning its command to the queue");
        let held = self.in_flight.remove(&join_error.id());
        let elapsed = held.as_ref().map(|(since, _)| since.elapsed()).unwrap_or_default();
        self.handler.metrics().record_delivery("panicked", "panic", "panic", elapsed);
        if let Some((_, ack)) = held
            && let Err(error) = ack.settle(Settlement::RequeueAfterFailure).await
        {
            warn!(%error, "message not settled; the broker will redeliver it");
        }
        Ok(())
    }
}
