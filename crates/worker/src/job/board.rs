//! How far each image of a job has come, shared by the images in flight.

use std::sync::{Mutex, MutexGuard, PoisonError};

use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{ImageFailure, ImageState, Tally};
use uuid::Uuid;

use crate::store::ClaimedImage;

pub(super) struct Board {
    min_success_rate: f64,
    state: Mutex<State>,
}

struct State {
    images: Vec<Image>,
    fatal: Option<(JobFailureCode, String)>,
    given_up: bool,
}

struct Image {
    row: ClaimedImage,
    description: String,
    announced: bool,
}

/// What a maker needs to know of an image's row.
pub(super) struct Slot {
    pub(super) id: Uuid,
    pub(super) description: String,
    pub(super) reserved_path: Option<String>,
    pub(super) requests_before: u32,
}

impl Board {
    pub(super) fn new(images: Vec<ClaimedImage>, descriptions: &[String], min_success_rate: f64) -> Self {
        let images = images
            .into_iter()
            .map(|row| {
                let description = descriptions.get(position(row.index)).cloned().unwrap_or_default();
                // What ended in an earlier try was announced then; what may pass is announced when it has not.
                let announced = match &row.state {
                    ImageState::Completed(_) => true,
                    ImageState::Failed(failure) => !failure.code.may_pass(),
                    ImageState::Untried => false,
                };
                Image { row, description, announced }
            })
            .collect();
        Self { min_success_rate, state: Mutex::new(State { images, fatal: None, given_up: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The images that have no end yet.
    pub(super) fn missing(&self) -> Vec<u32> {
        let state = self.lock();
        state
            .images
            .iter()
            .filter(|image| match &image.row.state {
                ImageState::Untried => true,
                ImageState::Failed(failure) => failure.code.may_pass(),
                ImageState::Completed(_) => false,
            })
            .map(|image| image.row.index)
            .collect()
    }

    pub(super) fn slot(&self, index: u32) -> Slot {
        let state = self.lock();
        let image = &state.images[position(index)];
        Slot {
            id: image.row.id,
            description: image.description.clone(),
            reserved_path: image.row.file_path.clone(),
            requests_before: image.row.requests,
        }
    }

    /// Whether another image can still help: the rate can be reached, and nothing was met that every image would meet.
    pub(super) fn is_worth_trying(&self) -> bool {
        let state = self.lock();
        !state.given_up && state.fatal.is_none() && state.tally().reachable(self.min_success_rate)
    }

    /// Lets no further image be begun.
    pub(super) fn give_up(&self) {
        self.lock().given_up = true;
    }

    /// Notes a cause that every further request would meet. The image that met it has had no end.
    pub(super) fn set_fatal(&self, code: JobFailureCode, message: String) {
        self.lock().fatal.get_or_insert((code, message));
    }

    pub(super) fn fatal(&self) -> Option<JobFailureCode> {
        self.lock().fatal.as_ref().map(|(code, _)| *code)
    }

    pub(super) fn fatal_message(&self) -> Option<String> {
        self.lock().fatal.as_ref().map(|(_, message)| message.clone())
    }

    pub(super) fn settle(&self, index: u32, state: ImageState, requests: u32, charged: u32) {
        let mut board = self.lock();
        let row = &mut board.images[position(index)].row;
        row.state = state;
        row.requests += requests;
        row.charged += charged;
    }

    pub(super) fn mark_announced(&self, index: u32) {
        self.lock().images[position(index)].announced = true;
    }

    /// Failures that nobody was told of, because they might have passed.
    pub(super) fn unannounced_failures(&self) -> Vec<(u32, ImageFailureCode)> {
        let state = self.lock();
        state
            .images
            .iter()
            .filter(|image| !image.announced)
            .filter_map(|image| match &image.row.state {
                ImageState::Failed(failure) => Some((image.row.index, failure.code)),
                ImageState::Untried | ImageState::Completed(_) => None,
            })
            .collect()
    }

    /// The job ends: what was not tried will not be.
    pub(super) fn mark_not_attempted(&self) {
        let mut board = self.lock();
        let fatal = board.fatal.as_ref().map(|(_, message)| message.clone());
        for image in &mut board.images {
            if image.row.state == ImageState::Untried {
                let before = || "the job ended before its turn".to_owned();
                // An image that was asked for met what ended the job.
                let message = fatal.clone().filter(|_| image.row.requests > 0).unwrap_or_else(before);
                image.row.state = ImageState::Failed(ImageFailure {
                    index: image.row.index,
                    description: image.description.clone(),
                    code: ImageFailureCode::NotAttempted,
                    message,
                    attempts: image.row.requests,
                });
            }
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.lock().tally()
    }

    /// Requests of all tries that were or may have been charged.
    pub(super) fn charged(&self) -> u32 {
        self.lock().images.iter().map(|image| image.row.charged).sum()
    }

    pub(super) fn images(&self) -> Vec<(Uuid, ImageState)> {
        self.lock().images.iter().map(|image| (image.row.id, image.row.state.clone())).collect()
    }
}

impl State {
    fn tally(&self) -> Tally {
        Tally::of(self.images.iter().map(|image| &image.row.state))
    }
}

/// Images stand by index, from 1.
fn position(index: u32) -> usize {
    index.saturating_sub(1) as usize
}
