//! Handles messages that the broker itself dead-lettered: their delivery limit was exceeded, or they expired.
//!
//! A command exceeds its delivery limit if its worker crashes or is lost each time.

use std::time::Duration;

use broker::{BrokerDeath, CommandStream, Message, Settlement};
use domain::command::JobKey;
use domain::digest;
use domain::event::JobError;
use domain::failure::JobFailureCode;
use store::KnownJob;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{Instrument, error, info_span, warn};

use crate::error_chain::error_chain;
use crate::handler::{CommandHandler, HandleError, is_told};
use crate::incoming::{Incoming, Rejected};
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
    // Dead-lettered by a worker, which has already handled its job.
    let Some(death) = message.broker_death() else { return Settlement::Acknowledge };
    let span = handler.consumer_span("process", "consumer", &message);
    trace::set_parent(&span, message.trace().as_ref());
    match fail_or_resume_job(&handler, &message, death).instrument(span).await {
        Ok(()) => Settlement::Acknowledge,
        Err(error) => {
            let error = error_chain(&error);
            warn!(error, delay = ?RETRY_DELAY, "handling a dead-lettered command failed; retrying");
            Settlement::Requeue
        }
    }
}

/// Requeues the command of an unfinished job. Any other command stays dead-lettered: what follows the end of a finished
/// job is published again, and a job that was never claimed fails.
async fn fail_or_resume_job(
    handler: &CommandHandler,
    message: &Message,
    death: BrokerDeath,
) -> Result<(), HandleError> {
    let (key, digest, reply) = match handler.parse(message) {
        Ok(Incoming { command, reply, .. }) => (Some(command.key()), command.digest(), reply.map(Box::new)),
        Err(Rejected { invalid, reply }) => (invalid.key, digest::sha256(&message.body), reply),
    };
    let error = death_error(death);
    let Some(key) = key else {
        if let Some(reply) = reply {
            handler.publish_failure(&reply, error.code.as_str(), &error.message).await?;
        }
        record_dead_letter(handler, death);
        return Ok(());
    };
    let JobKey { job_id, project_id } = key;
    // The same fields as in the span of a running job, so that a search for the job finds these log lines.
    let span = info_span!("job", job.id = %job_id, project.id = project_id);
    let ending = async {
        match handler.store().find_job(job_id).await? {
            Some(KnownJob { terminal_event: Some(terminal), .. }) => {
                handler.publish_end(job_id, &terminal, reply.as_deref()).await?;
            }
            // A sweep publishes what follows the end of a job that was never claimed.
            Some(KnownJob { was_claimed: false, reply: stored, .. })
                if handler.end_unclaimed_job(job_id, &digest, &error).await? =>
            {
                if let Some(reply) = reply.as_deref().filter(|reply| !is_told(Some(reply), stored.as_ref())) {
                    handler.publish_failure(reply, error.code.as_str(), &error.message).await?;
                }
            }
            Some(_) => {
                handler.publisher.requeue_at_end(message).await?;
                warn!(?death, "the broker gave up the command of an unfinished job; the command is requeued");
                return Ok(());
            }
            None => handler.fail_unstarted_job(message, key, &digest, &error, reply.as_deref()).await?,
        }
        record_dead_letter(handler, death);
        Ok(())
    };
    ending.instrument(span).await
}

/// Why a job fails whose command the broker gave up before a worker has claimed it.
fn death_error(death: BrokerDeath) -> JobError {
    match death {
        BrokerDeath::Expired => JobError {
            code: JobFailureCode::Expired,
            message: "the time to live of its command passed on the queue".to_owned(),
        },
        BrokerDeath::DeliveryLimit => JobError {
            code: JobFailureCode::AttemptsExhausted,
            message: "the delivery limit of its command was exceeded: its worker crashed or was lost each time"
                .to_owned(),
        },
    }
}

/// Must be called last: if an earlier step fails, the message is handled again and would be counted twice.
fn record_dead_letter(handler: &CommandHandler, death: BrokerDeath) {
    let reason = match death {
        BrokerDeath::Expired => {
            warn!("the command expired on the queue; it stays dead-lettered");
            DeadLetterReason::Expired
        }
        BrokerDeath::DeliveryLimit => {
            error!("delivery limit exceeded; the command stays dead-lettered");
            DeadLetterReason::DeliveryLimit
        }
    };
    handler.metrics().record_dead_letter(reason);
}
