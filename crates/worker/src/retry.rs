//! Making images of an ended job again, as a new job.

use broker::{BrokerError, Publisher};
use domain::command::{Command, InvalidCommand};
use domain::outcome::ImageState;
use domain::retry::{Retry, RetrySource};
use stability_client::Engine;
use store::{Store, StoreError, Submission};
use uuid::Uuid;

use crate::{bootstrap, failpoint};

/// Which images to make again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Selection {
    /// Those that failed; those that were refused by content policy only if they are to be included.
    Failed { include_refused: bool },
    /// A completed image, with this seed or another one than before.
    Image { index: u32, seed: Option<u32> },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RetryError {
    #[error("job {0} is not in the database, or its command is not known")]
    UnknownJob(Uuid),
    #[error("job {0} has not ended")]
    NotEnded(Uuid),
    #[error("no image of job {0} has failed")]
    NothingFailed(Uuid),
    #[error("all failed images of job {0} were refused by content policy; to make them again, use --include-refused")]
    OnlyRefused(Uuid),
    #[error("job {job_id} has no image {index}; it has the images 1 to {total}")]
    UnknownImage { job_id: Uuid, index: u32, total: usize },
    #[error("image {index} of job {job_id} is not completed; make failed images again with: asset-worker jobs retry")]
    NotCompleted { job_id: Uuid, index: u32 },
    #[error("seed {seed} is not allowed; engine {engine} takes 1 to {max}")]
    InvalidSeed { seed: u32, engine: Engine, max: u32 },
    #[error("job {job_id} makes other images of job {retry_of} again, or was cancelled; wait until it has ended")]
    Conflict { job_id: Uuid, retry_of: Uuid },
    #[error("the command of job {job_id} is not valid any more:\n  {}", violations.join("\n  "))]
    Invalid { job_id: Uuid, violations: Vec<String> },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{error}; if the command of job {job_id} was not sent, repeat this: it has no other effect")]
    Publish { job_id: Uuid, error: BrokerError },
}

impl RetryError {
    /// Whether the job has nothing to make again, rather than a fault.
    pub(crate) fn is_nothing_to_do(&self) -> bool {
        matches!(self, Self::UnknownJob(_) | Self::NothingFailed(_) | Self::OnlyRefused(_) | Self::Conflict { .. })
    }
}

/// Submits a new job with images of an ended one. Repeating it has no effect until the new job has ended. Returns the job,
/// and what its row said before.
///
/// `default_engine` is the engine of jobs that name none.
pub(crate) async fn make_again(
    store: &Store,
    publisher: &Publisher,
    default_engine: Engine,
    job_id: Uuid,
    selection: Selection,
) -> Result<(Retry, Submission), RetryError> {
    let source = store.read_retry_source(job_id).await?.ok_or(RetryError::UnknownJob(job_id))?;
    if !source.has_ended {
        return Err(RetryError::NotEnded(job_id));
    }
    let retry = match selection {
        Selection::Failed { include_refused } => retry_of_failed(&source, include_refused)?,
        Selection::Image { index, seed } => retry_of_image(&source, default_engine, index, seed)?,
    };
    let new_id = retry.command.job_id;
    let body = serde_json::to_vec(&retry.command).expect("a command serialises");
    // A worker would refuse it; the rules may have changed since the first job.
    Command::parse(&body, &bootstrap::rules())
        .map_err(|InvalidCommand { violations, .. }| RetryError::Invalid { job_id, violations })?;
    // The row is first: if the command is not sent, a repetition sends it.
    let submission = store.submit_retry(&retry).await?;
    match submission {
        Submission::Waiting => {
            failpoint::reach("before_retry_command").await;
            let sent = publisher.submit(new_id, &body, None, || None).await;
            sent.map_err(|error| RetryError::Publish { job_id: new_id, error })?;
        }
        Submission::Running | Submission::Ended => {}
        Submission::Conflict => return Err(RetryError::Conflict { job_id: new_id, retry_of: job_id }),
    }
    Ok((retry, submission))
}

fn retry_of_failed(source: &RetrySource, include_refused: bool) -> Result<Retry, RetryError> {
    let RetrySource { command, images, .. } = source;
    Retry::of_failed(source, include_refused).ok_or_else(|| {
        if images.iter().any(|image| matches!(image, ImageState::Failed(_))) {
            RetryError::OnlyRefused(command.job_id)
        } else {
            RetryError::NothingFailed(command.job_id)
        }
    })
}

fn retry_of_image(
    source: &RetrySource,
    default_engine: Engine,
    index: u32,
    seed: Option<u32>,
) -> Result<Retry, RetryError> {
    let RetrySource { command, images, .. } = source;
    let job_id = command.job_id;
    let position = index.checked_sub(1).map(|position| position as usize);
    match position.and_then(|position| images.get(position)) {
        Some(ImageState::Completed(_)) => {}
        Some(_) => return Err(RetryError::NotCompleted { job_id, index }),
        None => return Err(RetryError::UnknownImage { job_id, index, total: images.len() }),
    }
    let engine = command.config.engine.as_deref().and_then(|name| name.parse().ok()).unwrap_or(default_engine);
    let max = engine.max_seed();
    if let Some(seed) = seed.filter(|seed| !(1..=max).contains(seed)) {
        return Err(RetryError::InvalidSeed { seed, engine, max });
    }
    Retry::of_image(source, index, seed, max).ok_or(RetryError::UnknownImage { job_id, index, total: images.len() })
}
