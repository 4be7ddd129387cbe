//! Progress of the images of one attempt: plain state, written by the attempt's loop only.

use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{ImageFailure, ImageState, Tally};
use stability_client::Usage;
use uuid::Uuid;

use store::ClaimedImage;

/// The images of one attempt.
pub(super) struct JobProgress {
    pub(super) min_success_rate: f64,
    images: Vec<ImageProgress>,
    /// Images that had completed or failed permanently before this attempt.
    previously_ended: u32,
    /// At least one planned image has no result because the attempt was cancelled.
    pub(super) incomplete: bool,
    /// Files could not be stored, so no image was started: the job's next attempt tries again.
    pub(super) storage_unavailable: bool,
    /// Code and message of the first cause that every request would fail with.
    pub(super) fatal_cause: Option<(JobFailureCode, String)>,
}

struct ImageProgress {
    row: ClaimedImage,
    /// Whether its current state was announced in a progress event.
    announced: bool,
}

impl JobProgress {
    pub(super) fn new(images: Vec<ClaimedImage>, min_success_rate: f64) -> Self {
        let images: Vec<_> = images
            .into_iter()
            .map(|row| {
                // Earlier attempts announced their final results; a retryable failure is announced when the job ends.
                let announced = match &row.state {
                    ImageState::Completed(_) => true,
                    ImageState::Failed(failure) => !failure.retryable,
                    ImageState::Untried => false,
                };
                ImageProgress { row, announced }
            })
            .collect();
        let mut progress = Self {
            min_success_rate,
            images,
            previously_ended: 0,
            incomplete: false,
            storage_unavailable: false,
            fatal_cause: None,
        };
        progress.previously_ended = progress.ended_images();
        progress
    }

    /// The images that have neither completed nor failed permanently.
    pub(super) fn missing_images(&self) -> Vec<&ClaimedImage> {
        self.images.iter().map(|image| &image.row).filter(|image| image.state.is_missing()).collect()
    }

    /// One image: its row, with the usage of all attempts.
    pub(super) fn image(&self, index: u32) -> &ClaimedImage {
        &self.images[position(index)].row
    }

    pub(super) fn add_usage(&mut self, index: u32, usage: Usage) {
        self.images[position(index)].row.requests += usage.requests;
    }

    pub(super) fn set_state(&mut self, index: u32, state: ImageState) {
        self.images[position(index)].row.state = state;
    }

    pub(super) fn mark_announced(&mut self, index: u32) {
        self.images[position(index)].announced = true;
    }

    /// Records a cause that every request would fail with; only the first one is kept.
    pub(super) fn set_fatal_cause(&mut self, code: JobFailureCode, message: String) {
        self.fatal_cause.get_or_insert((code, message));
    }

    /// Whether a planned image has no result although further requests could still make the job succeed.
    pub(super) fn was_cut_short(&self) -> bool {
        self.incomplete && self.fatal_cause.is_none() && self.can_reach_success_rate()
    }

    /// Whether this attempt completed an image or found that one fails permanently.
    pub(super) fn made_progress(&self) -> bool {
        self.ended_images() > self.previously_ended
    }

    /// Whether the success rate can still be reached.
    pub(super) fn can_reach_success_rate(&self) -> bool {
        self.tally().can_reach(self.min_success_rate)
    }

    pub(super) fn tally(&self) -> Tally {
        Tally::from_images(self.images.iter().map(|image| &image.row.state))
    }

    fn ended_images(&self) -> u32 {
        let tally = self.tally();
        tally.completed + tally.permanent_failures
    }

    /// Failures without a progress event: they were retryable, so none was published when they occurred.
    pub(super) fn unannounced_failures(&self) -> Vec<(u32, ImageFailureCode)> {
        let unannounced = self.images.iter().filter(|image| !image.announced);
        let failures = unannounced.filter_map(|image| match &image.row.state {
            ImageState::Failed(failure) => Some((image.row.index, failure.code)),
            ImageState::Untried | ImageState::Completed(_) => None,
        });
        failures.collect()
    }

    /// Marks the untried images of a job that ends as `not_attempted`; returns their number.
    ///
    /// Those for which requests were sent get the message of the fatal cause, if there is one.
    pub(super) fn mark_not_attempted(&mut self) -> usize {
        let untried = self.images.iter_mut().filter(|image| image.row.state == ImageState::Untried);
        let mut count = 0;
        for image in untried {
            count += 1;
            let message = match (image.row.requests, &self.fatal_cause) {
                (0, _) => ImageFailure::NOT_REQUESTED,
                (_, Some((_, fatal))) => fatal,
                (_, None) => ImageFailure::NOT_MADE,
            };
            image.row.state = ImageState::Failed(ImageFailure {
                index: image.row.index,
                description: image.row.description.clone(),
                code: ImageFailureCode::NotAttempted,
                message: message.to_owned(),
                attempts: image.row.requests,
                retryable: false,
            });
        }
        count
    }

    /// The row ids and states of all images.
    pub(super) fn image_states(&self) -> Vec<(Uuid, ImageState)> {
        self.images.iter().map(|image| (image.row.id, image.row.state.clone())).collect()
    }
}

/// Converts an image index, which starts at 1, to a position in the list.
fn position(index: u32) -> usize {
    index.saturating_sub(1) as usize
}
