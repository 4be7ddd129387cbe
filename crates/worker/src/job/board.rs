//! How far each image of a job has come, shared by the images in flight.

use std::sync::{Mutex, MutexGuard, PoisonError};

use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::outcome::{ImageFailure, ImageState, Tally};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::ClaimedImage;

pub(super) struct Board {
    min_success_rate: f64,
    /// Cancelled as soon as a further request could not help the job, or is not wanted any more.
    halt: CancellationToken,
    state: Mutex<State>,
    payments_changed: Notify,
}

struct State {
    images: Vec<Image>,
    fatal: Option<(JobFailureCode, String)>,
    /// Some image's turn did not come, or was cut off.
    cut_off: bool,
    /// Payments that are being made, and those for requests that have had no end yet.
    payments_under_way: u32,
    /// Requests that were paid for and have had their end.
    payments_ended: u64,
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
}

impl Board {
    /// `stop` ends the job's requests from outside.
    pub(super) fn new(
        images: Vec<ClaimedImage>,
        descriptions: &[String],
        min_success_rate: f64,
        stop: &CancellationToken,
    ) -> Self {
        let images = images
            .into_iter()
            .map(|row| {
                let description = descriptions.get(position(row.index)).cloned().unwrap_or_default();
                // What ended in an earlier try was announced then; what may pass is announced when it has not.
                let announced = match &row.state {
                    ImageState::Completed(_) => true,
                    ImageState::Failed(failure) => !failure.may_pass,
                    ImageState::Untried => false,
                };
                Image { row, description, announced }
            })
            .collect();
        let state = Mutex::new(State { images, fatal: None, cut_off: false, payments_under_way: 0, payments_ended: 0 });
        Self { min_success_rate, halt: stop.child_token(), state, payments_changed: Notify::new() }
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
                ImageState::Failed(failure) => failure.may_pass,
                ImageState::Completed(_) => false,
            })
            .map(|image| image.row.index)
            .collect()
    }

    pub(super) fn slot(&self, index: u32) -> Slot {
        let state = self.lock();
        let image = &state.images[position(index)];
        Slot { id: image.row.id, description: image.description.clone(), reserved_path: image.row.file_path.clone() }
    }

    /// Cancelled as soon as no further request shall be sent: the rate cannot be reached, a cause was met that every request would meet, or
    /// we were told to stop.
    pub(super) fn halt(&self) -> &CancellationToken {
        &self.halt
    }

    /// Lets no further request be sent.
    pub(super) fn give_up(&self) {
        self.halt.cancel();
    }

    /// Notes a cause that every further request would meet, and lets none be sent. The image that met it has had no end.
    pub(super) fn set_fatal(&self, code: JobFailureCode, message: String) {
        self.lock().fatal.get_or_insert((code, message));
        self.halt.cancel();
    }

    /// The cause that every further request would meet.
    pub(super) fn fatal(&self) -> Option<JobFailureCode> {
        self.fatal_cause().map(|(code, _)| code)
    }

    /// The same, with its sentence.
    pub(super) fn fatal_cause(&self) -> Option<(JobFailureCode, String)> {
        self.lock().fatal.clone()
    }

    /// Notes that an image's turn did not come, or was cut off.
    pub(super) fn cut_off(&self) {
        self.lock().cut_off = true;
    }

    /// Whether that was so of any image.
    pub(super) fn was_cut_off(&self) -> bool {
        self.lock().cut_off
    }

    /// Notes how far an image has come; where that leaves too few, no further request is sent.
    pub(super) fn settle(&self, index: u32, state: ImageState) {
        let mut board = self.lock();
        board.images[position(index)].row.state = state;
        if !board.tally().reachable(self.min_success_rate) {
            self.halt.cancel();
        }
    }

    /// Counts a request for an image as sent and charged, unless all images would then have been charged for more than `affordable`.
    pub(super) fn charge(&self, index: u32, affordable: Option<u32>) -> bool {
        let mut board = self.lock();
        if affordable.is_some_and(|affordable| board.charged() >= affordable) {
            return false;
        }
        board.payments_under_way += 1;
        let row = &mut board.images[position(index)].row;
        row.requests += 1;
        row.charged += 1;
        true
    }

    /// It was not sent after all.
    pub(super) fn uncharge(&self, index: u32) {
        let mut board = self.lock();
        board.payments_under_way -= 1;
        let row = &mut board.images[position(index)].row;
        row.requests -= 1;
        row.charged -= 1;
        drop(board);
        self.payments_changed.notify_waiters();
    }

    /// It has had its end.
    pub(super) fn settle_payment(&self, index: u32, charged: bool) {
        let mut board = self.lock();
        board.payments_under_way -= 1;
        board.payments_ended += 1;
        board.images[position(index)].row.charged -= u32::from(!charged);
        drop(board);
        self.payments_changed.notify_waiters();
    }

    /// Payments that are being made, and those for requests that have had no end yet.
    pub(super) fn payments_under_way(&self) -> u32 {
        self.lock().payments_under_way
    }

    /// Requests that were paid for and have had their end, in this try.
    pub(super) fn payments_ended(&self) -> u64 {
        self.lock().payments_ended
    }

    /// The next change of these numbers, listened to from now on.
    pub(super) fn payments_changed(&self) -> impl Future<Output = ()> + '_ {
        let mut changed = Box::pin(self.payments_changed.notified());
        changed.as_mut().enable();
        changed
    }

    /// Requests that were sent for an image, in all tries.
    pub(super) fn requests(&self, index: u32) -> u32 {
        self.lock().images[position(index)].row.requests
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

    /// The job ends: what was not tried will not be. Says how many these are.
    pub(super) fn mark_not_attempted(&self) -> usize {
        let mut marked = 0;
        let mut board = self.lock();
        let fatal = board.fatal.as_ref().map(|(_, message)| message.clone());
        for image in &mut board.images {
            if image.row.state == ImageState::Untried {
                marked += 1;
                let tried = image.row.requests > 0;
                let before = if tried { "the job ended before it was made" } else { "the job ended before its turn" };
                // An image that was asked for met what ended the job.
                let message = fatal.clone().filter(|_| tried).unwrap_or_else(|| before.to_owned());
                image.row.state = ImageState::Failed(ImageFailure {
                    index: image.row.index,
                    description: image.description.clone(),
                    code: ImageFailureCode::NotAttempted,
                    message,
                    attempts: image.row.requests,
                    may_pass: false,
                });
            }
        }
        marked
    }

    pub(super) fn tally(&self) -> Tally {
        self.lock().tally()
    }

    /// Requests of all tries that were or may have been charged.
    pub(super) fn charged(&self) -> u32 {
        self.lock().charged()
    }

    pub(super) fn images(&self) -> Vec<(Uuid, ImageState)> {
        self.lock().images.iter().map(|image| (image.row.id, image.row.state.clone())).collect()
    }
}

impl State {
    fn tally(&self) -> Tally {
        Tally::of(self.images.iter().map(|image| &image.row.state))
    }

    fn charged(&self) -> u32 {
        self.images.iter().map(|image| image.row.charged).sum()
    }
}

/// Images stand by index, from 1.
fn position(index: u32) -> usize {
    index.saturating_sub(1) as usize
}
