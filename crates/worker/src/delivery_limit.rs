//! Handles messages that the broker dead-lettered because their delivery limit was exceeded.
//!
//! Such a command was delivered too often without being settled: its worker crashed or was lost each time.

use std::time::Duration;

use broker::{CommandStream, Message, Settlement};
use domain::command::{Command, InvalidCommand, JobKey};
use domain::digest;
use domain::event::JobError;
use domain::failure::JobFailureCode;
use store::KnownJob;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{Instrument, error, info_span, warn};

use crate::error_chain::error_chain;
use crate::handler::{CommandHandler, HandleError};
use crate::telemetry::metrics::DeadLetterReason;
use crate::telemetry::trace;

/// The delay before a message whose handling failed is handled again.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Handles each dead-lettered message; returns when the consumer ends or a message cannot be settled.
pub(crate) async fn handle_delivery_limit_queue(mut messages: CommandStream, handler: CommandHandler) {
    while let Ok(message) = messages.next().await {
        let ack = message.ack.clone();
        // In its own task: this message may have crashed its workers. If its handling panics, it stays dead-lettered.
        let mut task = JoinSet::new();
        task.spawn(handle_message(handler.clone(), message));
        let settlement = task.join_next().await.and_then(Result::ok).unwrap_or_else(|| {
            error!("handling a dead-lettered command panicked; it stays dead-lettered");
            Settlement::Acknowledge
        });
        if settlement == Settlement::Requeue {
            sleep(RETRY_DELAY).await;
        }
        if ack.settle(settlement).await.is_err() {
            return;
        }
    }
}

async fn handle_message(handler: CommandHandler, message: Message) -> Settlement {
    if !message.exceeded_delivery_limit() {
        // Dead-lettered by a worker, which has already handled its job.
        return Settlement::Acknowledge;
    }
    let span = handler.consumer_span("process", "consumer", &message);
    trace::set_parent(&span, message.trace().as_ref());
    match fail_or_resume_job(&handler, &message).instrument(span).await {
        Ok(()) => Settlement::Acknowledge,
        Err(error) => {
            let error = error_chain(&error);
            warn!(error, delay = ?RETRY_DELAY, "handling a command that exceeded its delivery limit failed; retrying");
            Settlement::Requeue
        }
    }
}

/// Requeues the command of an unfinished job. Any other command stays dead-lettered: the terminal event of a finished
/// job is published again, and an unknown job is recorded as failed.
async fn fail_or_resume_job(handler: &CommandHandler, message: &Message) -> Result<(), HandleError> {
    let (key, digest) = match Command::parse(&message.body, &handler.rules) {
        Ok(command) => (Some(command.key()), command.digest()),
        Err(InvalidCommand { key, .. }) => (key, digest::sha256(&message.body)),
    };
    let Some(key) = key else {
        record_dead_letter(handler);
        return Ok(());
    };
    let JobKey { job_id, project_id } = key;
    // The same fields as in the span of a running job, so that a search for the job finds these log lines.
    let span = info_span!("job", job.id = %job_id, project.id = project_id);
    let ending = async {
        match handler.store().find_job(job_id).await? {
            Some(KnownJob { terminal_event: None, .. }) => {
                handler.publisher.requeue_at_end(message).await?;
                warn!("delivery limit exceeded; the command of the unfinished job is requeued");
                return Ok(());
            }
            Some(KnownJob { terminal_event: Some(terminal), .. }) => {
                handler.publish_terminal_event(job_id, &terminal).await?;
            }
            None => {
                let code = JobFailureCode::AttemptsExhausted;
                let reason = "the delivery limit of its command was exceeded: its worker crashed or was lost each time";
                handler.fail_unstarted_job(message, key, digest, JobError { code, message: reason.to_owned() }).await?;
            }
        }
        record_dead_letter(handler);
        Ok(())
    };
    ending.instrument(span).await
}

/// Must be called last: if an earlier step fails, the message is handled again and would be counted twice.
fn record_dead_letter(handler: &CommandHandler) {
    handler.metrics().record_dead_letter(DeadLetterReason::DeliveryLimit);
    error!("delivery limit exceeded; the command stays dead-lettered");
}
