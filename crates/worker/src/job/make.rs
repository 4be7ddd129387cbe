//! One image, from its plan to its complete row.

use std::num::NonZeroU32;

use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::image_spec::ImageDefect;
use domain::outcome::{Asset, ImageFailure, ImageState, Origin};
use domain::recipe::Recipe;
use domain::story::Story;
use picture::{Finished, texts};
use stability_client::{BudgetError, Error, Party, Picture, Terms};
use tracing::{Instrument, Span, info, info_span, warn};

use super::board::{Board, Slot};
use super::keep::Stored;
use super::money::Purse;
use super::plan::{Plan, Unplannable};
use super::{JobRunError, Run};
use crate::causes;
use crate::pause;
use crate::storage::StorageError;
use crate::store::StoreError;
use crate::telemetry::metrics::{Coded, Stage};
use crate::telemetry::trace;

/// Requests of an urgent job for each one of another.
const URGENT_WEIGHT: NonZeroU32 = NonZeroU32::new(2).expect("not 0");

/// How the making of one image went wrong.
pub(super) enum Unmade {
    /// This image failed.
    Image(ImageFailureCode, String),
    /// Every image would fail alike.
    Job(JobFailureCode, String),
    /// Our own infrastructure failed.
    Broken(StoreError),
    /// No further request was wanted; the image has had no end.
    Stopped,
}

impl Unmade {
    /// Whether it was the API that failed, so that an image made before may stand in.
    pub(super) fn is_the_providers(&self) -> bool {
        match self {
            Self::Image(code, _) => match code {
                ImageFailureCode::InvalidImage
                | ImageFailureCode::RateLimited
                | ImageFailureCode::ProviderUnavailable
                | ImageFailureCode::Timeout => true,
                // A refusal is an answer: what the API does not want to make now is not shown either.
                ImageFailureCode::ContentPolicy
                | ImageFailureCode::RejectedRequest
                | ImageFailureCode::TranslationUnavailable
                | ImageFailureCode::Storage
                | ImageFailureCode::NotAttempted => false,
            },
            Self::Job(..) => true,
            Self::Broken(_) | Self::Stopped => false,
        }
    }
}

impl From<StoreError> for Unmade {
    fn from(error: StoreError) -> Self {
        Self::Broken(error)
    }
}

impl From<StorageError> for Unmade {
    fn from(error: StorageError) -> Self {
        Self::Image(ImageFailureCode::Storage, causes::joined(&error))
    }
}

/// The fate of every failure of the API.
pub(super) fn unmade(error: &Error) -> Unmade {
    let image = |code| Unmade::Image(code, error.to_string());
    let job = |code| Unmade::Job(code, error.to_string());
    match error {
        Error::ContentPolicy(_) | Error::Filtered => image(ImageFailureCode::ContentPolicy),
        Error::RateLimited { .. } | Error::Quota(_) => image(ImageFailureCode::RateLimited),
        Error::Damaged { .. } => image(ImageFailureCode::InvalidImage),
        Error::Timeout => image(ImageFailureCode::Timeout),
        Error::InvalidRequest(_) | Error::Rejected(_) => image(ImageFailureCode::RejectedRequest),
        Error::Unauthorized(_) => job(JobFailureCode::Unauthorized),
        Error::OutOfCredit(_) => job(JobFailureCode::InsufficientCredits),
        Error::UnknownEngine(_) => job(JobFailureCode::UnknownEngine),
        Error::Budget(BudgetError::Exceeded(_)) => job(JobFailureCode::BudgetExceeded),
        Error::Stopped => Unmade::Stopped,
        Error::Connect(_)
        | Error::Interrupted(_)
        | Error::Server { .. }
        | Error::Unfinished
        | Error::Undecodable(_)
        | Error::Budget(BudgetError::Unavailable(_)) => image(ImageFailureCode::ProviderUnavailable),
    }
}

/// What the API made, scaled, cropped and checked.
struct Made {
    finished: Finished,
    seed: u32,
}

/// Why one generation came to nothing.
enum Spoilt {
    /// What was sent cannot be used; another generation may give a better one.
    Picture {
        /// What is wrong with it.
        why: String,
        /// It came damaged; else it was made so.
        damaged: bool,
        /// Retries that it took.
        retries: u32,
    },
    /// Anything else.
    Unmade(Unmade),
}

impl Run<'_> {
    /// Brings one image to its end, and writes that end to board and database. Where no further request is wanted, it has none.
    pub(super) async fn make_image(&self, board: &Board, index: u32, plan: &Plan) -> Result<(), JobRunError> {
        let span = image_span(index);
        async {
            let slot = board.slot(index);
            let unmade = match self.made(board, &slot, index, plan).await {
                Ok(asset) => return self.complete(board, asset, plan).await,
                Err(unmade) => unmade,
            };
            // First of all no other request is sent where none can succeed.
            match &unmade {
                Unmade::Job(code, message) => {
                    warn!(code = code.as_str(), reason = message, "no request can succeed; no further one is sent");
                    board.set_fatal(*code, message.clone());
                }
                Unmade::Image(ImageFailureCode::Storage, _) => board.give_up(),
                Unmade::Image(..) | Unmade::Stopped | Unmade::Broken(_) => {}
            }
            if let Some(asset) = self.stand_in(&slot, index, plan, &unmade).await? {
                return self.complete(board, asset, plan).await;
            }
            match unmade {
                Unmade::Image(code, message) => {
                    self.fail(board, index, code, message, code.may_pass(), Some(&plan.recipe)).await?;
                }
                Unmade::Job(..) | Unmade::Stopped => board.cut_off(),
                Unmade::Broken(error) => return Err(error.into()),
            }
            Ok(())
        }
        .instrument(span)
        .await
    }

    /// Completes the row of an image whose file is stored.
    pub(super) async fn complete(&self, board: &Board, asset: Asset, plan: &Plan) -> Result<(), JobRunError> {
        let index = asset.index;
        let complete = || self.workshop.store.complete_image(self.lease, &asset, plan.fingerprint);
        let metrics = &self.workshop.metrics;
        metrics.stage(Stage::Row, self.workshop.patiently(complete)).await?;
        metrics.image_completed(asset.origin);
        trace::note("image.origin", asset.origin.as_str());
        trace::note("image.size_bytes", i64::try_from(asset.size_bytes).unwrap_or(i64::MAX));
        trace::note("image.requests", i64::from(board.requests(index)));
        info!(
            file_path = asset.file_path,
            size_bytes = asset.size_bytes,
            origin = asset.origin.as_str(),
            requests = board.requests(index),
            "image completed"
        );
        board.settle(index, ImageState::Completed(Box::new(asset)));
        self.announce_progress(board, index, None).await;
        Ok(())
    }

    /// Records the failure of an image.
    pub(super) async fn fail(
        &self,
        board: &Board,
        index: u32,
        code: ImageFailureCode,
        message: String,
        may_pass: bool,
        recipe: Option<&Recipe>,
    ) -> Result<(), JobRunError> {
        let slot = board.slot(index);
        let attempts = board.requests(index);
        self.workshop.metrics.image_failed(code);
        trace::note("image.requests", i64::from(attempts));
        trace::failed(code.as_str(), &message);
        let description = shortened(&slot.description);
        warn!(code = code.as_str(), reason = message, requests = attempts, description, "image failed");
        let failure = ImageFailure { index, description: slot.description, code, message, attempts, may_pass };
        // The board first: where this leaves too few, nothing more is spent.
        board.settle(index, ImageState::Failed(failure.clone()));
        // Patiently, since it may have been paid for: what is not recorded is asked for again.
        self.workshop.patiently(|| self.workshop.store.fail_image(self.lease, slot.id, &failure, recipe)).await?;
        if !may_pass {
            self.announce_progress(board, index, Some(code)).await;
        }
        Ok(())
    }

    /// The same of an image that cannot be asked for.
    pub(super) async fn fail_unplannable(
        &self,
        board: &Board,
        index: u32,
        unplannable: Unplannable,
    ) -> Result<(), JobRunError> {
        let Unplannable { code, message, may_pass } = unplannable;
        self.fail(board, index, code, message, may_pass, None).instrument(image_span(index)).await
    }

    async fn made(&self, board: &Board, slot: &Slot, index: u32, plan: &Plan) -> Result<Asset, Unmade> {
        if let Some(asset) = self.adopted(slot, index, plan).await? {
            return Ok(asset);
        }
        let purse = self.purse(board, index, slot.id);
        let made = self.generated(board, slot, index, plan, &purse).await;
        if let Some(error) = purse.into_broken() {
            return Err(Unmade::Broken(error));
        }
        let Made { finished: Finished { bytes, format, sha256 }, seed } = made?;
        pause::point("before the file").await;
        let file_path = self.reserve_path(slot, index, format).await?;
        let size_bytes = bytes.len() as u64;
        let storing = async {
            if !self.workshop.storage.put_new_patiently(&file_path, bytes.clone()).await? {
                self.put_over(&file_path, bytes).await?;
            }
            Ok::<_, Unmade>(())
        };
        self.workshop.metrics.stage(Stage::Store, storing).await?;
        pause::point("before the row").await;
        let stored = Stored { file_path, format, size_bytes, sha256 };
        Ok(self.asset(slot, index, plan, stored, seed, Origin::Generated))
    }

    /// A picture of the API. One that cannot be used is asked for once more, as one of the retries that a request has.
    async fn generated(
        &self,
        board: &Board,
        slot: &Slot,
        index: u32,
        plan: &Plan,
        purse: &Purse<'_>,
    ) -> Result<Made, Unmade> {
        let mut terms = Terms { stop: board.halt().clone(), budget: purse, retries_used: 0, party: self.party() };
        let (why, damaged, retries) = match self.generated_once(&terms, slot, index, plan).await {
            Ok(made) => return Ok(made),
            Err(Spoilt::Unmade(unmade)) => return Err(unmade),
            Err(Spoilt::Picture { why, damaged, retries }) => (why, damaged, retries),
        };
        terms.retries_used = retries as usize + 1;
        // The same seed makes the same picture again.
        let same_again = plan.recipe.asked_seed != 0 && !damaged;
        if same_again || terms.retries_used > self.workshop.retries {
            return Err(Unmade::Image(ImageFailureCode::InvalidImage, why));
        }
        warn!(reason = why, "the picture cannot be used; it is asked for once more");
        self.generated_once(&terms, slot, index, plan).await.map_err(|spoilt| match spoilt {
            Spoilt::Picture { why, .. } => Unmade::Image(ImageFailureCode::InvalidImage, why),
            Spoilt::Unmade(unmade) => unmade,
        })
    }

    /// Jobs take turns in sending requests.
    fn party(&self) -> Party {
        let weight = if self.envelope.urgent { URGENT_WEIGHT } else { NonZeroU32::MIN };
        Party { id: self.command.job_id.as_u128(), weight }
    }

    async fn generated_once(&self, terms: &Terms<'_>, slot: &Slot, index: u32, plan: &Plan) -> Result<Made, Spoilt> {
        let generated = match self.workshop.client.generate_on(terms, &plan.request).await {
            Ok(generated) => generated,
            Err(failure) => {
                return Err(match failure.error {
                    Error::Damaged { .. } => {
                        let (why, retries) = (failure.error.to_string(), failure.spent.retries);
                        Spoilt::Picture { why, damaged: true, retries }
                    }
                    error => Spoilt::Unmade(unmade(&error)),
                });
            }
        };
        let retries = generated.spent.retries;
        let Picture { image, seed } = generated.into_first();
        let story = Story::new(self.command.key(), index, &slot.description, &plan.recipe, seed, texts::SOFTWARE);
        let finished = self.workshop.metrics.stage(Stage::Finish, self.workshop.finisher.finish(image, story)).await;
        let finished = finished.map_err(|defect| {
            let damaged = matches!(defect, ImageDefect::Undecodable(_) | ImageDefect::Format);
            Spoilt::Picture { why: defect.to_string(), damaged, retries }
        })?;
        Ok(Made { finished, seed })
    }
}

/// The span of one image of the job that the program is at.
pub(super) fn image_span(index: u32) -> Span {
    info_span!("image", image.index = index)
}

impl Coded for Unmade {
    fn code(&self) -> &'static str {
        self.told().0
    }
}

impl std::fmt::Display for Unmade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.told().1)
    }
}

/// The beginning of a description, for a log line.
fn shortened(text: &str) -> String {
    text.chars().take(50).collect()
}
