//! Making images of an ended job again, as a new job.

use domain::command::{Command, InvalidCommand};
use domain::outcome::ImageState;
use domain::retry::{Retry, RetrySource};
use stability_client::Engine;
use store::{Store, StoreError, Submission};
use uuid::Uuid;

use crate::bootstrap;
use crate::submission::sweep_due_at;

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
    #[error(
        "all failed images of job {0} were refused by content policy; they are made again only if refused ones are included"
    )]
    OnlyRefused(Uuid),
    #[error("job {job_id} has no image {index}; it has the images 1 to {total}")]
    UnknownImage { job_id: Uuid, index: u32, total: usize },
    #[error("image {index} of job {job_id} is not completed; failed images are made again by a retry")]
    NotCompleted { job_id: Uuid, index: u32 },
    #[error("seed {seed} is not allowed; engine {engine} takes 1 to {max}")]
    InvalidSeed { seed: u32, engine: Engine, max: u32 },
    #[error("job {job_id} makes other images of job {retry_of} again; wait until it has ended")]
    Conflict { job_id: Uuid, retry_of: Uuid },
    #[error("the command of job {job_id} is not valid any more:\n  {}", violations.join("\n  "))]
    Invalid { job_id: Uuid, violations: Vec<String> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RetryError {
    /// Whether the job has nothing to make again, rather than a fault.
    pub(crate) fn is_nothing_to_do(&self) -> bool {
        matches!(self, Self::UnknownJob(_) | Self::NothingFailed(_) | Self::OnlyRefused(_) | Self::Conflict { .. })
    }
}

/// Writes the rows of a new job with images of an ended one; its command is to be published unless it runs or has ended.
/// Repeating it has no effect until the new job has ended.
///
/// `default_engine` is the engine of jobs that name none.
pub(crate) async fn submit_again(
    store: &Store,
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
    let submission = store.submit_retry(&retry, sweep_due_at()).await?;
    if submission == Submission::Conflict {
        return Err(RetryError::Conflict { job_id: new_id, retry_of: job_id });
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
