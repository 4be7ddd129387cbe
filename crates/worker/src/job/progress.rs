//! How far the images of an attempt have come. Plain state, written by the attempt's loop only.

use domain::failure::ImageFailureCode;
use domain::outcome::{ImageFailure, ImageState, Tally};
use stability_client::Usage;
use uuid::Uuid;

use super::plan::MissingImage;
use crate::store::ClaimedImage;

/// The images of one attempt.
pub(super) struct JobProgress {
    min_success_rate: f64,
    images: Vec<ImageProgress>,
    /// Images that were finished, or had failed for good, before this attempt.
    ended_before: u32,
    /// A planned image had no result, since the attempt was cancelled.
    incomplete: bool,
}

struct ImageProgress {
    row: ClaimedImage,
    description: String,
    /// A progress event has told of its present state.
    announced: bool,
}

impl JobProgress {
    pub(super) fn new(images: Vec<ClaimedImage>, descriptions: &[String], min_success_rate: f64) -> Self {
        let images: Vec<_> = images
            .into_iter()
            .map(|row| {
                let description = descriptions.get(position(row.index)).cloned().unwrap_or_default();
                // What ended in an earlier attempt was announced then; a retryable failure is announced at the end of the job.
                let announced = match &row.state {
                    ImageState::Completed(_) => true,
                    ImageState::Failed(failure) => !failure.may_pass,
                    ImageState::Untried => false,
                };
                ImageProgress { row, description, announced }
            })
            .collect();
        let mut progress = Self { min_success_rate, images, ended_before: 0, incomplete: false };
        progress.ended_before = progress.ended();
        progress
    }

    /// The images that are not finished and have not failed for good.
    pub(super) fn missing(&self) -> Vec<MissingImage> {
        let is_missing = |image: &&ImageProgress| match &image.row.state {
            ImageState::Untried => true,
            ImageState::Failed(failure) => failure.may_pass,
            ImageState::Completed(_) => false,
        };
        let missing = self.images.iter().filter(is_missing).map(|image| MissingImage {
            id: image.row.id,
            index: image.row.index,
            description: image.description.clone(),
            reserved_path: image.row.file_path.clone(),
        });
        missing.collect()
    }

    /// The row of an image and its description.
    pub(super) fn row(&self, index: u32) -> (Uuid, &str) {
        let image = &self.images[position(index)];
        (image.row.id, &image.description)
    }

    /// Adds what the requests for an image have used.
    pub(super) fn add_usage(&mut self, index: u32, usage: Usage) {
        let row = &mut self.images[position(index)].row;
        row.requests += usage.requests;
        row.charged += usage.possibly_charged;
    }

    /// Sets the result of an image.
    pub(super) fn set_state(&mut self, index: u32, state: ImageState) {
        self.images[position(index)].row.state = state;
    }

    pub(super) fn mark_announced(&mut self, index: u32) {
        self.images[position(index)].announced = true;
    }

    /// Notes that a planned image had no result, since the attempt was cancelled.
    pub(super) fn mark_incomplete(&mut self) {
        self.incomplete = true;
    }

    /// Whether a planned image had no result although more images can still help the job.
    pub(super) fn was_cut_short(&self) -> bool {
        self.incomplete && self.is_reachable()
    }

    /// Whether this attempt finished an image, or found that it fails for good.
    pub(super) fn has_advanced(&self) -> bool {
        self.ended() > self.ended_before
    }

    /// Whether the success rate can still be reached.
    pub(super) fn is_reachable(&self) -> bool {
        self.tally().reachable(self.min_success_rate)
    }

    /// Requests that were sent for an image, in all attempts.
    pub(super) fn requests(&self, index: u32) -> u32 {
        self.images[position(index)].row.requests
    }

    /// Requests of all attempts that were, or may have been, charged.
    pub(super) fn charged(&self) -> u32 {
        self.images.iter().map(|image| image.row.charged).sum()
    }

    pub(super) fn min_success_rate(&self) -> f64 {
        self.min_success_rate
    }

    pub(super) fn tally(&self) -> Tally {
        Tally::of(self.images.iter().map(|image| &image.row.state))
    }

    fn ended(&self) -> u32 {
        let tally = self.tally();
        tally.completed + tally.failed_for_good
    }

    /// Failures that no progress event has told of, because they could have been retried.
    pub(super) fn unannounced_failures(&self) -> Vec<(u32, ImageFailureCode)> {
        let unannounced = self.images.iter().filter(|image| !image.announced);
        let failures = unannounced.filter_map(|image| match &image.row.state {
            ImageState::Failed(failure) => Some((image.row.index, failure.code)),
            ImageState::Untried | ImageState::Completed(_) => None,
        });
        failures.collect()
    }

    /// Marks the untried images of a job that ends as `not_attempted`, and counts them. Those that were asked for have met the `fatal` cause, if there is
    /// one.
    pub(super) fn mark_not_attempted(&mut self, fatal: Option<&str>) -> usize {
        let untried = self.images.iter_mut().filter(|image| image.row.state == ImageState::Untried);
        let mut marked = 0;
        for image in untried {
            marked += 1;
            let message = match (image.row.requests, fatal) {
                (0, _) => "the job ended before its turn",
                (_, Some(fatal)) => fatal,
                (_, None) => "the job ended before it was made",
            };
            image.row.state = ImageState::Failed(ImageFailure {
                index: image.row.index,
                description: image.description.clone(),
                code: ImageFailureCode::NotAttempted,
                message: message.to_owned(),
                attempts: image.row.requests,
                may_pass: false,
            });
        }
        marked
    }

    /// The rows of all images with their states.
    pub(super) fn images(&self) -> Vec<(Uuid, ImageState)> {
        self.images.iter().map(|image| (image.row.id, image.row.state.clone())).collect()
    }
}

/// Images stand by index, from 1.
fn position(index: u32) -> usize {
    index.saturating_sub(1) as usize
}
