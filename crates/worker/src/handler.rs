//! One message: parse it, run its job, publish its terminal event, acknowledge it.

use std::time::Duration;

use broker::{BrokerError, CONSUMED, GENERATE_KEY, Message, Publisher, Routed, Settlement};
use domain::command::{Command, InvalidCommand, JobKey};
use domain::digest;
use domain::event::{Context, Event, JobError, Totals};
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
use crate::job::{Envelope, JobOutcome, JobRunError, JobRunner, note_outcome};
use crate::settings::JobSettings;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::{BROKEN, Coded, DeadLetterReason, Metrics, Stage};
use crate::telemetry::trace;

/// The reason of a dead letter whose id belongs to another command.
const CONFLICT: &str = "job_id_conflict";

/// Why a message could not be handled now: our own infrastructure failed.
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

impl Coded for HandleError {
    fn code(&self) -> &'static str {
        match self {
            Self::Job(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Broker(error) => error.code(),
            Self::Publish(error) => error.code(),
        }
    }
}

/// Labels of [`JobOutcome::labels`].
type Labels = (&'static str, &'static str);

/// Handles messages from the queue of commands. Clones share everything.
#[derive(Clone)]
pub struct CommandHandler {
    runner: JobRunner,
    pub(crate) publisher: Publisher,
    pub(crate) rules: Rules,
    /// A command that could not be handled comes back after this.
    failure_delay: Duration,
    /// A command whose job is leased elsewhere comes back after this.
    leased_delay: Duration,
    /// How long a redelivered command waits for the lease of its last worker, which may be lost.
    lease_wait: Duration,
}

impl CommandHandler {
    /// A handler with these parts.
    pub fn new(runner: JobRunner, publisher: Publisher, rules: Rules, jobs: &JobSettings) -> Self {
        let leased_delay = jobs.held_delay();
        let (failure_delay, lease_wait) = (jobs.delay_after(1), jobs.lease + leased_delay);
        Self { runner, publisher, rules, failure_delay, leased_delay, lease_wait }
    }

    /// Handles one message and settles it: it is acknowledged once its terminal event is confirmed, or it is on another queue. A command that cannot
    /// be handled now comes back later.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where the retry queue did not take the command; the message was requeued instead.
    pub fn handle(self, message: Message, shutdown: Shutdown) -> impl Future<Output = Result<(), BrokerError>> + Send {
        let span = self.span("process", "consumer", &message);
        trace::follow(&span, message.trace().as_ref());
        let handling = async move {
            let begun = Instant::now();
            let parsing = async {
                failpoint::reach("before_parse").await;
                self.parse(&message)
            };
            let (span, handled) = match parsing.instrument(self.span("receive", "client", &message)).await {
                Ok(command) => {
                    let span = trace::job_span(&command);
                    let trace = message.trace();
                    let lease_wait = if message.was_redelivered() { self.lease_wait } else { Duration::ZERO };
                    let envelope = Envelope { trace: trace.as_ref(), urgent: message.is_urgent(), lease_wait };
                    let running = async {
                        if message.is_last_delivery() && self.is_running(command.job_id).await? {
                            // Published anew, since one more delivery would exceed the limit: lost workers of a known job are counted in its row.
                            return self.respond(&message, &command, JobOutcome::RetryAfter(self.leased_delay)).await;
                        }
                        let outcome = self.runner.run(&command, envelope, &self.publisher, &shutdown).await;
                        note_outcome(outcome.as_ref());
                        self.respond(&message, &command, outcome?).await
                    };
                    (span.clone(), running.instrument(span).await)
                }
                Err(invalid) => {
                    trace::failed(JobFailureCode::InvalidRequest.as_str(), &invalid.to_string());
                    (Span::current(), self.reject(&message, invalid).await)
                }
            };
            let (settlement, sent) = match handled {
                Ok((settlement, (outcome, job_error))) => {
                    self.metrics().delivery(outcome, job_error, "", begun.elapsed());
                    (settlement, Ok(()))
                }
                Err(error) => {
                    let requeued = self.requeue(&message, &error).instrument(span).await;
                    trace::failed(error.code(), "the command comes back later");
                    self.metrics().delivery(BROKEN, error.code(), error.code(), begun.elapsed());
                    requeued
                }
            };
            if let Err(error) = message.ack.settle(settlement).await {
                warn!(%error, ?settlement, "a message was not settled; the broker delivers it again");
            }
            sent
        };
        handling.instrument(span)
    }

    /// Sends a command that could not be handled to a retry queue, or else returns it to its own.
    async fn requeue(&self, message: &Message, error: &HandleError) -> (Settlement, Result<(), BrokerError>) {
        trace::failed(error.code(), &error.to_string());
        let error = error_chain(error);
        match self.publisher.retry_later(message, self.failure_delay).await {
            Ok(()) => {
                warn!(error, delay = ?self.failure_delay, "command failed; requeued with delay");
                (Settlement::Acknowledge, Ok(()))
            }
            Err(unpublished) => {
                warn!(error, %unpublished, "command failed; returned to its queue");
                (Settlement::Requeue, Err(unpublished))
            }
        }
    }

    /// A consumer's span, by OpenTelemetry's conventions for RabbitMQ.
    pub(crate) fn span(&self, operation: &'static str, kind: &'static str, message: &Message) -> Span {
        let (host, port) = self.publisher.server();
        info_span!(
            "consume",
            otel.name = format!("{operation} {CONSUMED}"),
            otel.kind = kind,
            messaging.system = "rabbitmq",
            messaging.operation.name = operation,
            "messaging.operation.type" = operation,
            messaging.destination.name = CONSUMED,
            messaging.rabbitmq.destination.routing_key = GENERATE_KEY,
            messaging.message.id = message.message_id(),
            messaging.message.body.size = message.body.len(),
            server.address = host,
            server.port = port,
            asset_worker.deliveries = message.deliveries() + 1,
        )
    }

    /// The metrics.
    pub(crate) fn metrics(&self) -> &Metrics {
        self.runner.metrics()
    }

    /// The database.
    pub(crate) fn store(&self) -> &Store {
        self.runner.store()
    }

    /// The command of a message.
    ///
    /// # Errors
    ///
    /// [`InvalidCommand`] names every rule that body or properties break.
    fn parse(&self, message: &Message) -> Result<Command, InvalidCommand> {
        let parsed = Command::parse(&message.body, &self.rules);
        let Some(wrong) = message.wrong_encoding() else { return parsed };
        let (mut violations, key) = match parsed {
            Ok(command) => (Vec::new(), Some(command.key())),
            Err(InvalidCommand { violations, key }) => (violations, key),
        };
        violations.insert(0, wrong);
        Err(InvalidCommand { violations, key })
    }

    /// Whether a job is known and has not ended.
    async fn is_running(&self, job_id: Uuid) -> Result<bool, StoreError> {
        Ok(self.store().find_job(job_id).await?.is_some_and(|job| job.terminal.is_none()))
    }

    /// Publishes, retries or dead-letters according to the outcome of a job.
    async fn respond(
        &self,
        message: &Message,
        command: &Command,
        outcome: JobOutcome,
    ) -> Result<(Settlement, Labels), HandleError> {
        let labels = outcome.labels();
        let settlement = match outcome {
            JobOutcome::Ended(terminal) | JobOutcome::AlreadyEnded(terminal) => {
                self.publish_terminal(command.job_id, &terminal).await?;
                failpoint::reach("after_event").await;
                if terminal.error == Some(JobFailureCode::AttemptsExhausted) {
                    self.publisher.dead_letter(message, JobFailureCode::AttemptsExhausted.as_str()).await?;
                    self.metrics().dead_letter(DeadLetterReason::AttemptsExhausted);
                }
                Settlement::Acknowledge
            }
            JobOutcome::RetryAfter(delay) => {
                self.publisher.retry_later(message, delay).await?;
                Settlement::Acknowledge
            }
            JobOutcome::Leased | JobOutcome::LeaseLost => {
                info!(delay = ?self.leased_delay, "another worker has the job; requeued with delay");
                self.publisher.retry_later(message, self.leased_delay).await?;
                Settlement::Acknowledge
            }
            JobOutcome::Interrupted if !message.was_redelivered() => {
                info!("the job was interrupted; its command is returned to the head of the queue");
                // Only once: each requeue counts towards the delivery limit.
                Settlement::Requeue
            }
            JobOutcome::Interrupted | JobOutcome::Preempted => {
                info!("the job continues after the jobs that wait; its command goes to the end of the queue");
                self.publisher.hand_back(message).await?;
                Settlement::Acknowledge
            }
            JobOutcome::Conflict => {
                warn!("another command has this job id; dead-lettered");
                self.publisher.dead_letter(message, CONFLICT).await?;
                self.metrics().dead_letter(DeadLetterReason::Conflict);
                Settlement::Acknowledge
            }
        };
        Ok((settlement, labels))
    }

    /// Publishes the terminal event of a job with a confirm. One that no queue is bound for is kept with the job.
    pub(crate) async fn publish_terminal(&self, job_id: Uuid, terminal: &TerminalEvent) -> Result<(), HandleError> {
        failpoint::reach("before_event").await;
        let publishing = EventSink::publish(&self.publisher, &terminal.event);
        let published = self.metrics().stage(Stage::Publish, publishing).await;
        self.metrics().terminal_event(match &published {
            Ok(Routed::Taken) => "published",
            Ok(Routed::Unrouted) => "unrouted",
            Err(_) => "failed",
        });
        match published? {
            Routed::Taken if terminal.published => {}
            Routed::Taken => self.store().mark_published(job_id).await?,
            Routed::Unrouted => {
                let event = terminal.event.kind.as_str();
                warn!(event, "no queue is bound for the job's terminal event; it is kept with the job");
            }
        }
        Ok(())
    }

    /// Ends the job of a message that never ran, and publishes its terminal event; without effect where a job of that id is known.
    pub(crate) async fn fail_unrun(
        &self,
        message: &Message,
        key: JobKey,
        digest: String,
        error: JobError,
    ) -> Result<(), HandleError> {
        let trace = trace::current().or_else(|| message.trace());
        let context = Context { key, trace, time: OffsetDateTime::now_utc() };
        let event = Event::terminal(&context, &[], Totals { cost_usd: 0.0, duration_ms: 0 }, Some(&error));
        let recorded = self.store().record_unrun(key, digest, error.code, &error.message, &event).await?;
        if let Some(event) = recorded {
            self.publish_terminal(key.job_id, &TerminalEvent::new(event, Some(error.code))).await?;
        }
        Ok(())
    }

    /// Dead-letters a message that is not a command; the job that it names, if any, has failed.
    async fn reject(&self, message: &Message, invalid: InvalidCommand) -> Result<(Settlement, Labels), HandleError> {
        let code = JobFailureCode::InvalidRequest;
        let reason = invalid.to_string();
        warn!(reason, "message is not a valid command; dead-lettered");
        if let Some(key) = invalid.key {
            let error = JobError { code, message: reason.clone() };
            self.fail_unrun(message, key, digest::sha256(&message.body), error).await?;
        }
        self.publisher.dead_letter(message, &format!("{code}: {reason}")).await?;
        self.metrics().dead_letter(DeadLetterReason::InvalidRequest);
        Ok((Settlement::Acknowledge, ("failed", code.as_str())))
    }
}
