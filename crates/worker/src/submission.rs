//! Jobs whose rows are written before their commands are published.
//!
//! If the process is lost in between, or the broker cannot be reached, a sweep publishes the command.

use std::time::Duration;

use broker::{BrokerError, Publisher};
use domain::command::Command;
use domain::trace::TraceContext;
use store::{Store, StoreError};
use time::OffsetDateTime;

use crate::error_chain::error_chain;

/// The time that the process that has written the rows has to publish the command; then a sweep does.
const PUBLISH_TIME: Duration = Duration::from_secs(5);

/// A command could not be published, or it could not be recorded that it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishCommandError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("{}", error_chain(.0))]
    Store(#[from] StoreError),
}

/// When a sweep publishes the command of a job whose rows are written now.
pub(crate) fn sweep_due_at() -> OffsetDateTime {
    OffsetDateTime::now_utc() + PUBLISH_TIME
}

/// Publishes the command of a submitted job with a confirm, and records it.
pub(crate) async fn publish_command(
    store: &Store,
    publisher: &Publisher,
    command: &Command,
    trace: impl FnOnce() -> Option<TraceContext>,
) -> Result<(), PublishCommandError> {
    let body = serde_json::to_vec(command).expect("a command serialises");
    publisher.submit(command.job_id, &body, None, trace).await?;
    Ok(store.mark_commands_published(&[command.job_id]).await?)
}
