//! Making images again: a new job from the failed images of an ended one, or from one completed image.

use uuid::Uuid;

use crate::command::{CacheMode, Command};
use crate::failure::ImageFailureCode;
use crate::outcome::ImageState;

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

/// A job whose images may be made again.
#[derive(Debug)]
pub struct RetrySource {
    /// Its command.
    pub command: Command,
    /// Its images by index.
    pub images: Vec<ImageState>,
    /// For each image the index that its seed follows from: not its own if the job is a retry itself.
    pub seed_indexes: Vec<u32>,
    /// Whether it has ended.
    pub has_ended: bool,
    /// The ended jobs that made images of it again.
    pub ended_retries: Vec<Uuid>,
}

/// A job that makes images of another one again.
#[derive(Debug, Clone, PartialEq)]
pub struct Retry {
    /// Its command.
    pub command: Command,
    /// Where its images come from.
    pub origin: RetryOrigin,
    /// For each image the index that its seed follows from.
    pub seed_indexes: Vec<u32>,
}

impl Retry {
    /// A new job with the failed images of an ended one; `None` if there are none. Images that were refused by content
    /// policy are left out, unless `include_refused`.
    ///
    /// The id follows from that of the job and the number of its ended retries plus one, so that a repetition has no
    /// effect. The config is the same, without `expires_at`; the images keep their seeds.
    pub fn of_failed(source: &RetrySource, include_refused: bool) -> Option<Self> {
        let indexes: Vec<u32> = source
            .images
            .iter()
            .filter_map(|image| match image {
                ImageState::Failed(failure) if include_refused || failure.code != ImageFailureCode::ContentPolicy => {
                    Some(failure.index)
                }
                ImageState::Failed(_) | ImageState::Completed(_) | ImageState::Untried => None,
            })
            .collect();
        let id = source.next_id("retry");
        (!indexes.is_empty()).then(|| Self::new(source, id, indexes))
    }

    /// A new job that makes the image with this index again, with another seed; `None` if the job has no such image.
    ///
    /// The id follows from `seed`; without one, from the number of ended jobs of this kind plus one, and the seed (at most
    /// `max_seed`) from the id. The cache is not used: it would return the image that is not wanted.
    pub fn of_image(source: &RetrySource, index: u32, seed: Option<u32>, max_seed: u32) -> Option<Self> {
        source.command.image_descriptions.get(index.checked_sub(1)? as usize)?;
        let id = match seed {
            Some(seed) => source.derived_id(&format!("redo/{index}/seed/{seed}")),
            None => source.next_id(&format!("redo/{index}")),
        };
        let new_seed = || u32::try_from(id.as_u64_pair().0 % u64::from(max_seed) + 1).unwrap_or(max_seed);
        let mut retry = Self::new(source, id, vec![index]);
        retry.seed_indexes = vec![1];
        retry.command.config.seed = Some(seed.unwrap_or_else(new_seed));
        retry.command.config.cache = Some(CacheMode::Never);
        Some(retry)
    }

    fn new(source: &RetrySource, job_id: Uuid, original_indexes: Vec<u32>) -> Self {
        let position = |index: &u32| *index as usize - 1;
        let RetrySource { command, seed_indexes, .. } = source;
        let mut new = command.clone();
        new.job_id = job_id;
        new.config.expires_at = None;
        new.image_descriptions = original_indexes
            .iter()
            .filter_map(|index| command.image_descriptions.get(position(index)).cloned())
            .collect();
        let seed_indexes =
            original_indexes.iter().map(|index| seed_indexes.get(position(index)).copied().unwrap_or(*index)).collect();
        Self { command: new, origin: RetryOrigin { retry_of: command.job_id, original_indexes }, seed_indexes }
    }
}

impl RetrySource {
    /// The first id of this kind whose job has not ended.
    fn next_id(&self, kind: &str) -> Uuid {
        let id = |number: usize| self.derived_id(&format!("{kind}/{number}"));
        let mut ids = (1..=self.ended_retries.len() + 1).map(id);
        ids.find(|id| !self.ended_retries.contains(id)).expect("there are more ids than ended jobs")
    }

    fn derived_id(&self, name: &str) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("{}/{name}", self.command.job_id).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use crate::command::JobConfig;
    use crate::outcome::ImageFailure;

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

    fn source() -> RetrySource {
        let config =
            JobConfig { seed: Some(7), expires_at: Some(time::OffsetDateTime::UNIX_EPOCH), ..JobConfig::default() };
        let image_descriptions = ["A fox", "A bear", "An owl"].map(str::to_owned).to_vec();
        RetrySource {
            command: Command { job_id: Uuid::from_u128(1), project_id: 3, image_descriptions, config },
            images: vec![
                ImageState::Untried,
                failure(2, ImageFailureCode::Timeout),
                failure(3, ImageFailureCode::ContentPolicy),
            ],
            seed_indexes: vec![1, 2, 3],
            has_ended: true,
            ended_retries: Vec::new(),
        }
    }

    #[test]
    fn retry_has_the_failed_images_and_an_id_for_each_ended_retry() {
        let mut source = source();
        let first = Retry::of_failed(&source, false).expect("an image failed");
        assert_eq!(first.command.image_descriptions, ["A bear"]);
        assert_eq!(first.origin, RetryOrigin { retry_of: Uuid::from_u128(1), original_indexes: vec![2] });
        assert_eq!((first.origin.original_index(1), first.origin.original_index(2)), (Some(2), None));
        assert_eq!((first.command.config.seed, first.command.config.expires_at), (Some(7), None));
        assert_eq!(Retry::of_failed(&source, false).as_ref(), Some(&first), "a repetition is the same job");
        let all = Retry::of_failed(&source, true).expect("images failed");
        assert_eq!((all.origin.original_indexes, all.seed_indexes), (vec![2, 3], vec![2, 3]));
        // The end of another image's job changes nothing.
        let redo = Retry::of_image(&source, 3, None, u32::MAX).expect("the job has three images");
        source.ended_retries = vec![redo.command.job_id];
        assert_eq!(Retry::of_failed(&source, false).as_ref(), Some(&first));
        source.ended_retries.push(first.command.job_id);
        assert_ne!(Retry::of_failed(&source, false).expect("an image failed").command.job_id, first.command.job_id);
        source.images.remove(1);
        assert_eq!(Retry::of_failed(&source, false), None);
    }

    #[test]
    fn retry_of_a_retry_keeps_the_seeds() {
        let first = Retry::of_failed(&source(), false).expect("an image failed");
        let images = vec![failure(1, ImageFailureCode::Timeout)];
        let again = RetrySource { command: first.command, images, seed_indexes: first.seed_indexes, ..source() };
        let second = Retry::of_failed(&again, false).expect("an image failed");
        assert_eq!((second.origin.original_indexes, second.seed_indexes), (vec![1], vec![2]));
    }

    #[test]
    fn redone_image_has_another_seed_and_no_cache() {
        let mut source = source();
        let redo = |source: &RetrySource, index, seed| Retry::of_image(source, index, seed, 1000);
        let given = redo(&source, 3, Some(2)).expect("the job has three images");
        assert_eq!(given.command.image_descriptions, ["An owl"]);
        assert_eq!((given.command.config.seed, &given.seed_indexes[..]), (Some(2), &[1][..]));
        assert_eq!((given.origin.original_index(1), given.command.config.cache), (Some(3), Some(CacheMode::Never)));
        let chosen = redo(&source, 3, None).expect("the job has three images");
        assert_eq!(redo(&source, 3, None).as_ref(), Some(&chosen), "a repetition is the same job");
        assert_ne!(redo(&source, 2, None).expect("the job has three images").command.job_id, chosen.command.job_id);
        source.ended_retries = vec![chosen.command.job_id, given.command.job_id];
        let next = redo(&source, 3, None).expect("the job has three images");
        assert_ne!(
            (next.command.job_id, next.command.config.seed),
            (chosen.command.job_id, chosen.command.config.seed)
        );
        assert!((1..=1000).contains(&next.command.config.seed.unwrap_or_default()));
        assert_eq!(redo(&source, 3, Some(2)), Some(given), "the same seed makes the same image");
        assert!(redo(&source, 4, None).is_none() && redo(&source, 0, None).is_none());
    }
}
