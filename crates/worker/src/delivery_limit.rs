//! Messages whose delivery limit was exceeded: the broker dead-letters a command that was delivered too often without being settled, since it ended or lost
//! its worker each time.

use std::time::Duration;

use broker::{Commands, Message, Settlement};
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

/// The wait before a message that could not be handled is read again.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Handles each message that was dead-lettered; returns when the broker delivers no more.
pub(crate) async fn handle_dead_lettered(mut messages: Commands, handler: CommandHandler) {
    while let Ok(message) = messages.next().await {
        let ack = message.ack.clone();
        // A task of its own: this message may have crashed its workers. If its handling panics, it stays dead-lettered.
        let mut task = JoinSet::new();
        task.spawn(handle(handler.clone(), message));
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

async fn handle(handler: CommandHandler, message: Message) -> Settlement {
    if !message.exceeded_delivery_limit() {
        // A worker has dead-lettered it, and has handled its job.
        return Settlement::Acknowledge;
    }
    let span = handler.span("process", "consumer", &message);
    trace::follow(&span, message.trace().as_ref());
    match end_job(&handler, &message).instrument(span).await {
        Ok(()) => Settlement::Acknowledge,
        Err(error) => {
            let error = error_chain(&error);
            warn!(error, delay = ?RETRY_DELAY, "handling a command that exceeded its delivery limit failed; retrying");
            Settlement::Requeue
        }
    }
}

/// The command stays dead-lettered and its job has failed, unless the job is known: then it goes on.
async fn end_job(handler: &CommandHandler, message: &Message) -> Result<(), HandleError> {
    let (key, digest) = match Command::parse(&message.body, &handler.rules) {
        Ok(command) => (Some(command.key()), command.digest()),
        Err(InvalidCommand { key, .. }) => (key, digest::sha256(&message.body)),
    };
    let Some(key) = key else {
        note_dead_letter(handler);
        return Ok(());
    };
    let JobKey { job_id, project_id } = key;
    // Its fields are those of a job's own span, so that its log lines are found.
    let span = info_span!("job", job.id = %job_id, project.id = project_id);
    let ending = async {
        match handler.store().find_job(job_id).await? {
            Some(KnownJob { terminal: None }) => {
                handler.publisher.hand_back(message).await?;
                warn!("delivery limit exceeded; the job is known and goes on");
                return Ok(());
            }
            Some(KnownJob { terminal: Some(terminal) }) => handler.publish_terminal(job_id, &terminal).await?,
            None => {
                let code = JobFailureCode::AttemptsExhausted;
                let reason = "its command was delivered again and again, and ended or lost its worker each time";
                handler.fail_unrun(message, key, digest, JobError { code, message: reason.to_owned() }).await?;
            }
        }
        note_dead_letter(handler);
        Ok(())
    };
    ending.instrument(span).await
}

/// Called last: if an earlier step fails, the message is handled again and would be counted twice.
fn note_dead_letter(handler: &CommandHandler) {
    handler.metrics().dead_letter(DeadLetterReason::DeliveryLimit);
    error!("delivery limit exceeded; the command stays dead-lettered");
}
