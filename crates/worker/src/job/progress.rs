//! How far the images of an attempt have come. Plain state, written by the attempt's loop only.

use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{ImageFailure, ImageState, Tally};
use stability_client::Usage;
use uuid::Uuid;

use store::ClaimedImage;

/// The images of one attempt.
pub(super) struct JobProgress {
    pub(super) min_success_rate: f64,
    images: Vec<ImageProgress>,
    /// Images that were finished, or had failed for good, before this attempt.
    ended_before: u32,
    /// A planned image had no result, since the attempt was cancelled.
    pub(super) incomplete: bool,
    /// The first cause found that every request would meet, with its sentence.
    pub(super) fatal: Option<(JobFailureCode, String)>,
}

struct ImageProgress {
    row: ClaimedImage,
    /// A progress event was published for its present state.
    announced: bool,
}

impl JobProgress {
    pub(super) fn new(images: Vec<ClaimedImage>, min_success_rate: f64) -> Self {
        let images: Vec<_> = images
            .into_iter()
            .map(|row| {
                // What ended in an earlier attempt was announced then; a retryable failure is announced at the end of the job.
                let announced = match &row.state {
                    ImageState::Completed(_) => true,
                    ImageState::Failed(failure) => !failure.may_pass,
                    ImageState::Untried => false,
                };
                ImageProgress { row, announced }
            })
            .collect();
        let mut progress = Self { min_success_rate, images, ended_before: 0, incomplete: false, fatal: None };
        progress.ended_before = progress.ended();
        progress
    }

    /// The images that are not finished and have not failed for good.
    pub(super) fn missing(&self) -> Vec<&ClaimedImage> {
        let is_missing = |image: &&ClaimedImage| match &image.state {
            ImageState::Untried => true,
            ImageState::Failed(failure) => failure.may_pass,
            ImageState::Completed(_) => false,
        };
        self.images.iter().map(|image| &image.row).filter(is_missing).collect()
    }

    /// One image: its row, with the usage of all attempts.
    pub(super) fn image(&self, index: u32) -> &ClaimedImage {
        &self.images[position(index)].row
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

    /// Notes a cause that every request would meet; the first one counts.
    pub(super) fn set_fatal(&mut self, code: JobFailureCode, message: String) {
        self.fatal.get_or_insert((code, message));
    }

    /// Whether a planned image had no result although further requests could still help the job.
    pub(super) fn was_cut_short(&self) -> bool {
        self.incomplete && self.fatal.is_none() && self.is_reachable()
    }

    /// Whether this attempt finished an image, or found that it fails for good.
    pub(super) fn has_advanced(&self) -> bool {
        self.ended() > self.ended_before
    }

    /// Whether the success rate can still be reached.
    pub(super) fn is_reachable(&self) -> bool {
        self.tally().reachable(self.min_success_rate)
    }

    /// Requests of all attempts that were, or may have been, charged.
    pub(super) fn charged(&self) -> u32 {
        self.images.iter().map(|image| image.row.charged).sum()
    }

    pub(super) fn tally(&self) -> Tally {
        Tally::of(self.images.iter().map(|image| &image.row.state))
    }

    fn ended(&self) -> u32 {
        let tally = self.tally();
        tally.completed + tally.failed_for_good
    }

    /// Failures that no progress event was published for, because they could have been retried.
    pub(super) fn unannounced_failures(&self) -> Vec<(u32, ImageFailureCode)> {
        let unannounced = self.images.iter().filter(|image| !image.announced);
        let failures = unannounced.filter_map(|image| match &image.row.state {
            ImageState::Failed(failure) => Some((image.row.index, failure.code)),
            ImageState::Untried | ImageState::Completed(_) => None,
        });
        failures.collect()
    }

    /// Marks the untried images of a job that ends as `not_attempted`, and counts them. Those that were requested get the message of the fatal cause, if
    /// there is one.
    pub(super) fn mark_not_attempted(&mut self) -> usize {
        let untried = self.images.iter_mut().filter(|image| image.row.state == ImageState::Untried);
        let mut marked = 0;
        for image in untried {
            marked += 1;
            let message = match (image.row.requests, &self.fatal) {
                (0, _) => "the job ended before its turn",
                (_, Some((_, fatal))) => fatal,
                (_, None) => "the job ended before it was made",
            };
            image.row.state = ImageState::Failed(ImageFailure {
                index: image.row.index,
                description: image.row.description.clone(),
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

/// The position of an image, whose index counts from 1.
fn position(index: u32) -> usize {
    index.saturating_sub(1) as usize
}
