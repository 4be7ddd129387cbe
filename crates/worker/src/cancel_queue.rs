//! Consumes requests to cancel jobs, also while the account gate is closed.

use std::time::Duration;

use broker::{CommandStream, Message, Publisher, Settlement};
use domain::cancel_request::CancelRequest;
use store::{Cancellation, Store};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::error_chain::error_chain;
use crate::failpoint;
use crate::telemetry::metrics::{DeadLetterReason, Metrics};

/// The delay before a request that could not be recorded is handled again.
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// Records each request; returns when the consumer ends or a message cannot be settled.
pub(crate) async fn handle_cancel_queue(
    mut messages: CommandStream,
    store: Store,
    publisher: Publisher,
    metrics: Metrics,
) {
    while let Ok(message) = messages.next().await {
        let settlement = handle_message(&message, &store, &publisher, &metrics).await;
        if settlement == Settlement::Requeue {
            sleep(RETRY_DELAY).await;
        }
        if message.ack.settle(settlement).await.is_err() {
            return;
        }
    }
}

async fn handle_message(message: &Message, store: &Store, publisher: &Publisher, metrics: &Metrics) -> Settlement {
    let CancelRequest { job_id, reason } = match CancelRequest::parse(&message.body) {
        Ok(request) => request,
        Err(invalid) => {
            let reason = invalid.to_string();
            warn!(reason, "message is not a valid request to cancel a job; dead-lettered");
            return match publisher.dead_letter_cancel(message, &reason).await {
                Ok(()) => {
                    metrics.record_dead_letter(DeadLetterReason::InvalidCancel);
                    Settlement::Acknowledge
                }
                Err(error) => {
                    warn!(%error, "invalid request not dead-lettered; it is handled again");
                    Settlement::Requeue
                }
            };
        }
    };
    match store.cancel_jobs(&[job_id], reason.as_deref()).await {
        Ok(Cancellation { cancelled, remembered, .. }) => {
            failpoint::reach("after_cancellation").await;
            info!(job.id = %job_id, reason, cancelled, remembered, "cancellation recorded");
            Settlement::Acknowledge
        }
        Err(error) => {
            warn!(job.id = %job_id, error = error_chain(&error), "cancellation not recorded; it is handled again");
            Settlement::Requeue
        }
    }
}
