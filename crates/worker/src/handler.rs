//! Handles one message: parses it, runs its job, publishes the terminal event and settles the message.

mod end;

use std::sync::Arc;
use std::time::Duration;

use broker::{BrokerError, CONSUME_DESTINATION, GENERATE_KEY, Message, Publisher, Settlement};
use celery::Reply;
use domain::command::Command;
use domain::digest;
use domain::event::JobError;
use domain::failure::JobFailureCode;
use domain::rules::Rules;
use store::{Store, StoreError, Submission};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{Instrument, Span, info, info_span, warn};
use uuid::Uuid;

use crate::celery_node::CeleryNode;
use crate::error_chain::error_chain;
use crate::event_sink::PublishError;
use crate::failpoint;
use crate::incoming::{self, Incoming, Rejected};
use crate::job::{JobOutcome, JobRunError, JobRunner, RunOptions, record_outcome};
use crate::replies::ReplyError;
use crate::settings::Settings;
use crate::shutdown::Shutdown;
use crate::telemetry::metrics::{DeadLetterReason, ErrorCode, Metrics, OUTCOME_ERROR};
use crate::telemetry::trace;

pub(crate) use end::is_told;

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
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

impl ErrorCode for HandleError {
    fn code(&self) -> &'static str {
        match self {
            Self::Job(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Broker(error) => error.code(),
            Self::Publish(error) => error.code(),
            Self::Reply(error) => error.code(),
        }
    }
}

/// What has written the rows of a job that is due later.
enum Submitted {
    /// This message, or an earlier one of the same task.
    Here,
    /// A message of another task.
    ByAnotherTask,
}

/// The outcome label and failure code of [`JobOutcome::labels`].
type OutcomeLabels = (&'static str, &'static str);

/// Handles messages of the command queue. Clones share their resources.
#[derive(Clone)]
pub struct CommandHandler {
    runner: JobRunner,
    pub(crate) publisher: Publisher,
    rules: Arc<Rules>,
    celery_tasks: Arc<[String]>,
    celery_node: CeleryNode,
    /// The delay before a failed command is delivered again.
    failure_delay: Duration,
    /// The delay before a command whose job is leased elsewhere is delivered again.
    leased_delay: Duration,
    /// The delay before a command for a job that is due later is delivered again.
    longest_delay: Duration,
    /// How long a redelivered command waits for the lease of its previous worker, which may be lost.
    lease_wait: Duration,
}

impl CommandHandler {
    /// Creates a handler; its delays are derived from the settings.
    pub(crate) fn new(
        runner: JobRunner,
        publisher: Publisher,
        rules: Rules,
        celery_node: CeleryNode,
        settings: &Settings,
    ) -> Self {
        let jobs = &settings.jobs;
        let leased_delay = jobs.leased_delay();
        let (failure_delay, lease_wait) = (jobs.job_retry_delay(1), jobs.lease + leased_delay);
        let longest_delay = jobs.retry_delays.iter().max().copied().unwrap_or(leased_delay);
        let (rules, celery_tasks) = (Arc::new(rules), settings.celery_tasks.clone().into());
        Self {
            runner,
            publisher,
            rules,
            celery_tasks,
            celery_node,
            failure_delay,
            leased_delay,
            longest_delay,
            lease_wait,
        }
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
                Ok(incoming) => {
                    let Incoming { command, reply, .. } = &incoming;
                    let span = trace::job_span(command);
                    let (trace, stored_reply) = (message.trace(), reply.as_ref().map(Reply::to_stored));
                    let lease_wait = if message.was_redelivered() { self.lease_wait } else { Duration::ZERO };
                    let options = RunOptions {
                        trace: trace.as_ref(),
                        urgent: message.is_urgent(),
                        reply: stored_reply.as_ref(),
                        lease_wait,
                    };
                    let running = async {
                        if let Some(deferred) = self.defer(&message, &incoming, options).await? {
                            return Ok(deferred);
                        }
                        let sink = self.celery_node.watch(command, reply.as_ref(), &self.publisher);
                        let outcome = self.runner.run(command, options, &sink, &shutdown).await;
                        drop(sink);
                        record_outcome(outcome.as_ref());
                        self.apply_outcome(&message, command, reply.as_ref(), outcome?).await
                    };
                    (span.clone(), running.instrument(span).await)
                }
                Err(rejected) => {
                    trace::set_error(JobFailureCode::InvalidRequest.as_str(), &rejected.invalid.to_string());
                    (Span::current(), self.reject(&message, rejected).await)
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

    /// Keeps a command in the database or on a retry queue if its job is not to be run now.
    async fn defer(
        &self,
        message: &Message,
        incoming: &Incoming,
        options: RunOptions<'_>,
    ) -> Result<Option<(Settlement, OutcomeLabels)>, HandleError> {
        let Incoming { command, due_at, reply } = incoming;
        let submitted = match due_at.filter(|due_at| *due_at > OffsetDateTime::now_utc()) {
            Some(due_at) => self.submit_for_later(command, due_at, reply.as_ref(), options).await?,
            None => None,
        };
        let delay = match submitted {
            Some(Submitted::Here) => return Ok(Some((Settlement::Acknowledge, ("scheduled", "")))),
            // This task is told when the job has ended.
            Some(Submitted::ByAnotherTask) => self.longest_delay,
            // Losing one more worker would exceed the delivery limit. The row of a known job counts its lost workers. A job
            // that its workers released goes on.
            None if message.is_last_delivery() && self.may_have_lost_worker(command.job_id).await? => self.leased_delay,
            None => return Ok(None),
        };
        self.apply_outcome(message, command, reply.as_ref(), JobOutcome::RetryAfter(delay)).await.map(Some)
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
    /// [`Rejected`] lists every rule that the body or the properties violate.
    pub(crate) fn parse(&self, message: &Message) -> Result<Incoming, Rejected> {
        incoming::parse(message, &self.rules, &self.celery_tasks)
    }

    /// Writes the rows of a job that is due later; a sweep publishes its command then. Returns `None` if the job has to be
    /// run instead: its id is known, and it was claimed or has ended.
    async fn submit_for_later(
        &self,
        command: &Command,
        due_at: OffsetDateTime,
        reply: Option<&Reply>,
        options: RunOptions<'_>,
    ) -> Result<Option<Submitted>, StoreError> {
        let submission = self.store().submit_job(command, due_at, options.trace, options.reply).await?;
        if !matches!(submission, Submission::New | Submission::Waiting) {
            return Ok(None);
        }
        failpoint::reach("after_submission").await;
        let stored = self.store().find_job(command.job_id).await?.and_then(|job| job.reply);
        if !is_told(reply, stored.as_ref()) {
            return Ok(Some(Submitted::ByAnotherTask));
        }
        info!(%due_at, "job is due later; its command is kept in the database");
        Ok(Some(Submitted::Here))
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
        reply: Option<&Reply>,
        outcome: JobOutcome,
    ) -> Result<(Settlement, OutcomeLabels), HandleError> {
        let labels = outcome.labels();
        let settlement = match outcome {
            JobOutcome::Ended(terminal) | JobOutcome::AlreadyEnded(terminal) => {
                self.publish_end(command.job_id, &terminal, reply).await?;
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
            JobOutcome::Purged => {
                info!("job had ended and was purged; its command has no effect");
                Settlement::Acknowledge
            }
            JobOutcome::Conflict => {
                warn!("job id belongs to another command; command dead-lettered");
                if let Some(reply) = reply {
                    let reason = "the job id belongs to another command";
                    self.publish_failure(reply, CONFLICT_REASON, reason).await?;
                }
                self.publisher.dead_letter(message, CONFLICT_REASON).await?;
                self.metrics().record_dead_letter(DeadLetterReason::JobIdConflict);
                Settlement::Acknowledge
            }
        };
        Ok((settlement, labels))
    }

    /// Dead-letters a message that is not a valid command, and fails the job that it names, if any.
    async fn reject(&self, message: &Message, rejected: Rejected) -> Result<(Settlement, OutcomeLabels), HandleError> {
        let code = JobFailureCode::InvalidRequest;
        let Rejected { invalid, reply } = rejected;
        let reason = invalid.to_string();
        warn!(reason, "message is not a valid command; dead-lettered");
        if let Some(key) = invalid.key {
            let error = JobError { code, message: reason.clone() };
            // The rules may have changed since it was submitted.
            let submitted = serde_json::from_slice::<Command>(&message.body).map(|command| command.digest());
            if let Ok(digest) = submitted {
                self.end_unclaimed_job(key.job_id, &digest, &error).await?;
            }
            self.fail_unstarted_job(message, key, &digest::sha256(&message.body), &error, reply.as_deref()).await?;
        } else if let Some(reply) = reply {
            self.publish_failure(&reply, code.as_str(), &reason).await?;
        }
        self.publisher.dead_letter(message, &format!("{code}: {reason}")).await?;
        self.metrics().record_dead_letter(DeadLetterReason::InvalidRequest);
        Ok((Settlement::Acknowledge, ("failed", code.as_str())))
    }
}
