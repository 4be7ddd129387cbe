//! Making images again: a new job from the failed images of an ended one, or from one completed image.

use uuid::Uuid;

use crate::command::{CacheMode, Command};
use crate::failure::ImageFailureCode;
use crate::outcome::ImageState;
use crate::seed::job_seed;

/// The namespace of the ids of such jobs.
const NAMESPACE: Uuid = Uuid::from_u128(0x8e1f_3b52_77d4_5c0a_9d6b_40f2_a1c9_e5d3);

/// Where the images of a job come from, if it makes images of another job again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryOrigin {
    /// The other job.
    pub retry_of: Uuid,
    /// The index in the other job of each image, in order.
    pub original_indexes: Vec<u32>,
}

impl RetryOrigin {
    /// The index in the other job of the image with this index (from 1).
    pub fn original_index(&self, index: u32) -> Option<u32> {
        self.original_indexes.get(index.checked_sub(1)? as usize).copied()
    }
}

/// A job that makes images of another one again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Its command.
    pub command: Command,
    /// Where its images come from.
    pub origin: RetryOrigin,
}

impl Retry {
    /// A new job with the failed images of an ended one; `None` if there are none. Images that were refused by content
    /// policy are left out, unless `include_refused`.
    ///
    /// The id follows from that of the job and the number of its ended retries plus one, so that a repetition has no
    /// effect. The config is the same, without `expires_at`.
    pub fn of_failed(
        command: &Command,
        images: &[ImageState],
        ended_retries: u32,
        include_refused: bool,
    ) -> Option<Self> {
        let indexes: Vec<u32> = images
            .iter()
            .filter_map(|image| match image {
                ImageState::Failed(failure) if include_refused || failure.code != ImageFailureCode::ContentPolicy => {
                    Some(failure.index)
                }
                ImageState::Failed(_) | ImageState::Completed(_) | ImageState::Untried => None,
            })
            .collect();
        let name = format!("{}/retry/{}", command.job_id, ended_retries + 1);
        (!indexes.is_empty()).then(|| Self::new(command, &name, indexes))
    }

    /// A new job that makes the image with this index again, with another seed; `None` if the job has no such image.
    ///
    /// The id follows from `seed`; without one, from the number of ended retries plus one, and the seed from the id. The
    /// cache is not used: it would return the image that is not wanted. `max_seed` is the highest seed of the engine.
    pub fn of_image(
        command: &Command,
        index: u32,
        seed: Option<u32>,
        ended_retries: u32,
        max_seed: u32,
    ) -> Option<Self> {
        command.image_descriptions.get(index.checked_sub(1)? as usize)?;
        let name = match seed {
            Some(seed) => format!("{}/redo/{index}/seed/{seed}", command.job_id),
            None => format!("{}/redo/{index}/{}", command.job_id, ended_retries + 1),
        };
        let mut retry = Self::new(command, &name, vec![index]);
        let new_seed = || retry.command.job_id.as_u64_pair().0 % u64::from(max_seed) + 1;
        let seed = seed.unwrap_or_else(|| u32::try_from(new_seed()).unwrap_or(max_seed));
        retry.command.config.seed = Some(job_seed(seed, index, max_seed));
        retry.command.config.cache = Some(CacheMode::Never);
        Some(retry)
    }

    fn new(command: &Command, name: &str, original_indexes: Vec<u32>) -> Self {
        let mut new = command.clone();
        new.job_id = Uuid::new_v5(&NAMESPACE, name.as_bytes());
        new.config.expires_at = None;
        let description = |index: &u32| command.image_descriptions.get(*index as usize - 1).cloned();
        new.image_descriptions = original_indexes.iter().filter_map(description).collect();
        Self { command: new, origin: RetryOrigin { retry_of: command.job_id, original_indexes } }
    }
}

#[cfg(test)]
mod tests {
    use crate::command::JobConfig;
    use crate::outcome::ImageFailure;
    use crate::seed::image_seed;

    use super::*;

    fn failure(index: u32, code: ImageFailureCode) -> ImageState {
        ImageState::Failed(ImageFailure {
            index,
            description: String::new(),
            code,
            message: String::new(),
            attempts: 1,
            retryable: false,
        })
    }

    fn command() -> Command {
        let config =
            JobConfig { seed: Some(7), expires_at: Some(time::OffsetDateTime::UNIX_EPOCH), ..JobConfig::default() };
        let image_descriptions = ["A fox", "A bear", "An owl"].map(str::to_owned).to_vec();
        Command { job_id: Uuid::from_u128(1), project_id: 3, image_descriptions, config }
    }

    #[test]
    fn retry_has_the_failed_images_and_an_id_for_each_ended_retry() {
        let images =
            [ImageState::Untried, failure(2, ImageFailureCode::Timeout), failure(3, ImageFailureCode::ContentPolicy)];
        let retry = |ended, include_refused| Retry::of_failed(&command(), &images, ended, include_refused);
        let first = retry(0, false).expect("an image failed");
        assert_eq!(first.command.image_descriptions, ["A bear"]);
        assert_eq!(first.origin, RetryOrigin { retry_of: Uuid::from_u128(1), original_indexes: vec![2] });
        assert_eq!((first.origin.original_index(1), first.origin.original_index(2)), (Some(2), None));
        assert_eq!((first.command.config.seed, first.command.config.expires_at), (Some(7), None));
        assert_eq!(retry(0, false).as_ref(), Some(&first), "a repetition is the same job");
        assert_ne!(retry(1, false).expect("an image failed").command.job_id, first.command.job_id);
        assert_eq!(retry(0, true).expect("images failed").origin.original_indexes, [2, 3]);
        assert_eq!(Retry::of_failed(&command(), &images[2..], 0, false), None);
    }

    #[test]
    fn redone_image_has_another_seed_and_no_cache() {
        let redo = |index, seed, ended| Retry::of_image(&command(), index, seed, ended, u32::MAX);
        let seed_of = |retry: &Retry| image_seed(retry.command.config.seed.unwrap_or_default(), 3, u32::MAX);
        let given = redo(3, Some(2), 0).expect("the job has three images");
        assert_eq!(given.command.image_descriptions, ["An owl"]);
        assert_eq!((seed_of(&given), given.origin.original_index(1)), (2, Some(3)));
        assert_eq!(given.command.config.cache, Some(CacheMode::Never));
        assert_eq!(redo(3, Some(2), 5).as_ref(), Some(&given), "the same seed makes the same image");
        let chosen = redo(3, None, 0).expect("the job has three images");
        let next = redo(3, None, 1).expect("the job has three images");
        assert_eq!(redo(3, None, 0).as_ref(), Some(&chosen), "a repetition is the same job");
        assert_ne!(chosen.command.job_id, next.command.job_id);
        let seeds = [9, seed_of(&given), seed_of(&chosen), seed_of(&next)];
        assert!(seeds.iter().all(|seed| seeds.iter().filter(|other| *other == seed).count() == 1), "{seeds:?}");
        assert!(redo(4, None, 0).is_none() && redo(0, None, 0).is_none());
    }
}
