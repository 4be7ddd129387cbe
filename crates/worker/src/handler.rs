//! Handles one message: parses it, runs its job, publishes the terminal event and settles the message.

use std::time::Duration;

use broker::{BrokerError, CONSUME_DESTINATION, GENERATE_KEY, Message, PublishOutcome, Publisher, Settlement};
use domain::command::{Command, InvalidCommand, JobKey};
use domain::digest;
use domain::event::{Event, EventContext, JobError, Totals};
use domain::failure::JobFailureCode;
use domain::rules::Rules;
use store::{Store, StoreError, TerminalEvent};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{Instrument, Span, info, info_span, warn};
use uuid::Uuid;

use crate::error_chain::error_chain;
use crate::event_sink::{EventSink, PublishError};
use crate::failpoint;
use crate::job::{JobOutcome, JobRunError, JobRunner, RunOptions, record_outcome};
use crate::settings::JobSettings;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::{DeadLetterReason, ErrorCode, Metrics, OUTCOME_ERROR, Stage};
use crate::telemetry::trace;

/// The dead-letter reason of a command whose job id belongs to another command.
const CONFLICT_REASON: &str = "job_id_conflict";

/// A failure of the worker's own infrastructure that prevented the handling of a message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandleError {
    #[error(transparent)]
    Job(#[from] JobRunError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl ErrorCode for HandleError {
    fn code(&self) -> &'static str {
        match self {
            Self::Job(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Broker(error) => error.code(),
            Self::Publish(error) => error.code(),
        }
    }
}

/// The outcome label and failure code of [`JobOutcome::labels`].
type OutcomeLabels = (&'static str, &'static str);

/// Handles messages of the command queue. Clones share their resources.
#[derive(Clone)]
pub struct CommandHandler {
    runner: JobRunner,
    pub(crate) publisher: Publisher,
    pub(crate) rules: Rules,
    /// The delay before a failed command is delivered again.
    failure_delay: Duration,
    /// The delay before a command whose job is leased elsewhere is delivered again.
    leased_delay: Duration,
    /// How long a redelivered command waits for the lease of its previous worker, which may be lost.
    lease_wait: Duration,
}

impl CommandHandler {
    /// Creates a handler; its delays are derived from `jobs`.
    pub fn new(runner: JobRunner, publisher: Publisher, rules: Rules, jobs: &JobSettings) -> Self {
        let leased_delay = jobs.leased_delay();
        let (failure_delay, lease_wait) = (jobs.job_retry_delay(1), jobs.lease + leased_delay);
        Self { runner, publisher, rules, failure_delay, leased_delay, lease_wait }
    }

    /// Handles one message and settles it.
    ///
    /// The message is acknowledged once its terminal event is confirmed or the command is on another queue. A command
    /// that fails is delivered again after a delay.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the retry queue did not accept the command. The message is not settled then: the caller
    /// requeues it.
    pub fn handle(self, message: Message, shutdown: Shutdown) -> impl Future<Output = Result<(), BrokerError>> + Send {
        let span = self.consumer_span("process", "consumer", &message);
        trace::set_parent(&span, message.trace().as_ref());
        let handling = async move {
            let started_at = Instant::now();
            let parsing = async {
                failpoint::reach("before_parse").await;
                self.parse(&message)
            };
            let (span, handled) = match parsing.instrument(self.consumer_span("receive", "client", &message)).await {
                Ok(command) => {
                    let span = trace::job_span(&command);
                    let trace = message.trace();
                    let lease_wait = if message.was_redelivered() { self.lease_wait } else { Duration::ZERO };
                    let options = RunOptions { trace: trace.as_ref(), urgent: message.is_urgent(), lease_wait };
                    let running = async {
                        if message.is_last_delivery() && self.may_have_lost_worker(command.job_id).await? {
                            // Republished: losing one more worker would exceed the delivery limit. The row of a known
                            // job counts its lost workers. A job that its workers released goes on.
                            return self
                                .apply_outcome(&message, &command, JobOutcome::RetryAfter(self.leased_delay))
                                .await;
                        }
                        let outcome = self.runner.run(&command, options, &self.publisher, &shutdown).await;
                        record_outcome(outcome.as_ref());
                        self.apply_outcome(&message, &command, outcome?).await
                    };
                    (span.clone(), running.instrument(span).await)
                }
                Err(invalid) => {
                    trace::set_error(JobFailureCode::InvalidRequest.as_str(), &invalid.to_string());
                    (Span::current(), self.reject(&message, invalid).await)
                }
            };
            let settlement = match handled {
                Ok((settlement, (outcome, job_error))) => {
                    self.metrics().record_delivery(outcome, job_error, "", started_at.elapsed());
                    settlement
                }
                Err(error) => {
                    let published = self.retry_later(&message, &error).instrument(span).await;
                    trace::set_error(error.code(), "command failed; it will be delivered again");
                    self.metrics().record_delivery(OUTCOME_ERROR, error.code(), error.code(), started_at.elapsed());
                    published?
                }
            };
            if let Err(error) = message.ack.settle(settlement).await {
                warn!(%error, ?settlement, "message not settled; the broker will redeliver it");
            }
            Ok(())
        };
        handling.instrument(span)
    }

    /// Publishes a failed command to a retry queue.
    async fn retry_later(&self, message: &Message, error: &HandleError) -> Result<Settlement, BrokerError> {
        trace::set_error(error.code(), &error.to_string());
        let error = error_chain(error);
        match self.publisher.retry_later(message, self.failure_delay).await {
            Ok(()) => {
                warn!(error, delay = ?self.failure_delay, "command failed; requeued with delay");
                Ok(Settlement::Acknowledge)
            }
            Err(unpublished) => {
                warn!(error, %unpublished, "command failed; returning it to its queue without delay");
                Err(unpublished)
            }
        }
    }

    /// Creates a consumer span that follows OpenTelemetry's conventions for RabbitMQ.
    pub(crate) fn consumer_span(&self, operation: &'static str, kind: &'static str, message: &Message) -> Span {
        let (host, port) = self.publisher.server_address();
        info_span!(
            "consume",
            otel.name = format!("{operation} {CONSUME_DESTINATION}"),
            otel.kind = kind,
            messaging.system = "rabbitmq",
            messaging.operation.name = operation,
            "messaging.operation.type" = operation,
            messaging.destination.name = CONSUME_DESTINATION,
            messaging.rabbitmq.destination.routing_key = GENERATE_KEY,
            messaging.message.id = message.message_id(),
            messaging.message.body.size = message.body.len(),
            server.address = host,
            server.port = port,
            asset_worker.deliveries = message.previous_deliveries() + 1,
        )
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.runner.metrics()
    }

    pub(crate) fn store(&self) -> &Store {
        self.runner.store()
    }

    /// Parses the command of a message.
    ///
    /// # Errors
    ///
    /// [`InvalidCommand`] lists every rule that the body or the properties violate.
    fn parse(&self, message: &Message) -> Result<Command, InvalidCommand> {
        let parsed = Command::parse(&message.body, &self.rules);
        let Some(violation) = message.unsupported_encoding() else { return parsed };
        let (mut violations, key) = match parsed {
            Ok(command) => (Vec::new(), Some(command.key())),
            Err(InvalidCommand { violations, key }) => (violations, key),
        };
        violations.insert(0, violation);
        Err(InvalidCommand { violations, key })
    }

    /// Whether the last worker that claimed the job has not released it.
    async fn may_have_lost_worker(&self, job_id: Uuid) -> Result<bool, StoreError> {
        Ok(self.store().find_job(job_id).await?.is_some_and(|job| job.is_running))
    }

    /// Applies the outcome of a job: publishes its terminal event, or retries, requeues or dead-letters its command.
    async fn apply_outcome(
        &self,
        message: &Message,
        command: &Command,
        outcome: JobOutcome,
    ) -> Result<(Settlement, OutcomeLabels), HandleError> {
        let labels = outcome.labels();
        let settlement = match outcome {
            JobOutcome::Ended(terminal) | JobOutcome::AlreadyEnded(terminal) => {
                self.publish_terminal_event(command.job_id, &terminal).await?;
                failpoint::reach("after_event").await;
                if terminal.error == Some(JobFailureCode::AttemptsExhausted) {
                    self.publisher.dead_letter(message, JobFailureCode::AttemptsExhausted.as_str()).await?;
                    self.metrics().record_dead_letter(DeadLetterReason::AttemptsExhausted);
                }
                Settlement::Acknowledge
            }
            JobOutcome::RetryAfter(delay) => {
                self.publisher.retry_later(message, delay).await?;
                Settlement::Acknowledge
            }
            JobOutcome::Leased | JobOutcome::LeaseLost => {
                info!(delay = ?self.leased_delay, "job is leased elsewhere; command requeued with delay");
                self.publisher.retry_later(message, self.leased_delay).await?;
                Settlement::Acknowledge
            }
            // A requeue counts towards the delivery limit, before RabbitMQ 4.3.
            JobOutcome::Interrupted if !message.is_last_delivery() => {
                info!("job interrupted; command returned to the head of the queue");
                Settlement::Requeue
            }
            JobOutcome::Interrupted | JobOutcome::Preempted => {
                info!("job interrupted or preempted; moving its command to the end of the queue");
                self.publisher.requeue_at_end(message).await?;
                Settlement::Acknowledge
            }
            JobOutcome::GateClosed => {
                info!("account gate closed; moving the command to the end of the queue");
                // Published again: a requeue would count towards the delivery limit.
                self.publisher.requeue_at_end(message).await?;
                Settlement::Acknowledge
            }
            JobOutcome::Conflict => {
                warn!("job id belongs to another command; command dead-lettered");
                self.publisher.dead_letter(message, CONFLICT_REASON).await?;
                self.metrics().record_dead_letter(DeadLetterReason::JobIdConflict);
                Settlement::Acknowledge
            }
        };
        Ok((settlement, labels))
    }

    /// Publishes the terminal event of a job with a publisher confirm. An unroutable event is kept with the job.
    pub(crate) async fn publish_terminal_event(
        &self,
        job_id: Uuid,
        terminal: &TerminalEvent,
    ) -> Result<(), HandleError> {
        failpoint::reach("before_event").await;
        let publishing = EventSink::publish(&self.publisher, &terminal.event);
        let published = self.metrics().run_stage(Stage::Publish, publishing).await;
        self.metrics().record_terminal_event(match &published {
            Ok(PublishOutcome::Routed) => "published",
            Ok(PublishOutcome::Unrouted) => "unrouted",
            Err(_) => "failed",
        });
        match published? {
            PublishOutcome::Routed if terminal.published => {}
            PublishOutcome::Routed => self.store().mark_published(job_id).await?,
            PublishOutcome::Unrouted => {
                let event = terminal.event.kind.as_str();
                warn!(event, "no queue is bound for the job's terminal event; it is kept with the job");
            }
        }
        Ok(())
    }

    /// Fails a job that was never started and publishes its terminal event; no effect if a job with this id is known.
    pub(crate) async fn fail_unstarted_job(
        &self,
        message: &Message,
        key: JobKey,
        digest: String,
        error: JobError,
    ) -> Result<(), HandleError> {
        let trace = trace::current_context().or_else(|| message.trace());
        let context = EventContext { key, trace, time: OffsetDateTime::now_utc() };
        let event = Event::terminal(&context, &[], None, Totals { cost_usd: 0.0, duration_ms: 0 }, Some(&error));
        let recorded = self.store().fail_unclaimed_job(key, digest, error.code, &error.message, &event).await?;
        if let Some(event) = recorded {
            self.publish_terminal_event(key.job_id, &TerminalEvent::new(event, Some(error.code))).await?;
        }
        Ok(())
    }

    /// Dead-letters a message that is not a valid command, and fails the job that it names, if any.
    async fn reject(
        &self,
        message: &Message,
        invalid: InvalidCommand,
    ) -> Result<(Settlement, OutcomeLabels), HandleError> {
        let code = JobFailureCode::InvalidRequest;
        let reason = invalid.to_string();
        warn!(reason, "message is not a valid command; dead-lettered");
        if let Some(key) = invalid.key {
            let error = JobError { code, message: reason.clone() };
            self.fail_unstarted_job(message, key, digest::sha256(&message.body), error).await?;
        }
        self.publisher.dead_letter(message, &format!("{code}: {reason}")).await?;
        self.metrics().record_dead_letter(DeadLetterReason::InvalidRequest);
        Ok((Settlement::Acknowledge, ("failed", code.as_str())))
    }
}
