//! `jobs retry` and `jobs redo`: make images of ended jobs again.

use std::time::Duration;

use broker::{Broker, Topology};
use domain::retry::Retry;
use serde_json::json;
use store::{Store, Submission};
use uuid::Uuid;

use crate::cli::exit::CliError;
use crate::cli::screen::{Screen, to_json};
use crate::failpoint;
use crate::retry::{self, RetryError, Selection};
use crate::settings::Settings;
use crate::submission::publish_command;

/// Submitted jobs, each with what its row said before.
pub(super) type Retries = Vec<(Retry, Submission)>;

/// Makes images of these jobs again, and adds each new job to `retries`. `skip` leaves out jobs that have nothing to make
/// again; otherwise they are errors.
pub(super) async fn make_again(
    store: &Store,
    settings: &Settings,
    job_ids: &[Uuid],
    selection: Selection,
    skip: bool,
    retries: &mut Retries,
) -> Result<(), CliError> {
    let broker = Broker::connect(&settings.amqp_url, &Topology::new(settings.jobs.queue_delays())).await?;
    let publisher = broker.create_publisher(Duration::ZERO).await?;
    for job_id in job_ids {
        match retry::submit_again(store, settings.stability.engine, *job_id, selection).await {
            Ok((retry, submission)) => {
                if matches!(submission, Submission::New | Submission::Waiting) {
                    failpoint::reach("before_retry_command").await;
                    publish_command(store, &publisher, &retry.command, || None).await.map_err(|error| {
                        let job_id = retry.command.job_id;
                        CliError::unreachable(format!("{error}; a worker publishes the command of job {job_id} later"))
                    })?;
                }
                retries.push((retry, submission));
            }
            Err(error) if skip && error.is_nothing_to_do() => {}
            Err(error) => return Err(error.into()),
        }
    }
    broker.close().await;
    Ok(())
}

pub(super) fn print_retries(retries: &Retries, as_json: bool, screen: &Screen) {
    if as_json {
        let retries = retries.iter().map(|(Retry { command, origin, .. }, submission)| {
            let (job_id, retry_of, images) = (command.job_id, origin.retry_of, &origin.original_indexes);
            let ended = *submission == Submission::Ended;
            json!({"job_id": job_id, "retry_of": retry_of, "images": images, "ended": ended})
        });
        return screen.print(&to_json(&retries.collect::<Vec<_>>()));
    }
    for (Retry { command, origin, .. }, submission) in retries {
        let (job_id, retry_of) = (command.job_id, origin.retry_of);
        let indexes: Vec<String> = origin.original_indexes.iter().map(u32::to_string).collect();
        let images = indexes.join(", ");
        screen.print(&match submission {
            Submission::Ended => {
                format!("job {job_id} has ended; it made these images of job {retry_of} again: {images}")
            }
            _ => format!("job {job_id} makes these images of job {retry_of} again: {images}"),
        });
    }
    if retries.is_empty() {
        screen.print_note("no failed images");
    }
}

impl From<RetryError> for CliError {
    fn from(error: RetryError) -> Self {
        match error {
            RetryError::Store(error) => error.into(),
            error => Self::Usage(error.to_string()),
        }
    }
}
