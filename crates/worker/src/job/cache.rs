//! Images made before: they stand in for those that cannot be made, or need not be.

use domain::command::CacheMode;
use domain::outcome::{Asset, Origin};
use tracing::{Instrument, info, warn};

use super::board::{Board, Slot};
use super::keep::Stored;
use super::make::{Unmade, image_span};
use super::plan::Plan;
use super::{JobRunError, Plans, Run};
use crate::causes;
use crate::store::CachedImage;

impl Run<'_> {
    pub(super) fn prefers_cache(&self) -> bool {
        self.cache_mode() == CacheMode::Prefer
    }

    fn cache_mode(&self) -> CacheMode {
        self.command.config.cache.unwrap_or_default()
    }

    /// With `prefer`: takes from the cache what is there, so that only the rest is asked for.
    pub(super) async fn take_preferred(&self, board: &Board, plans: &mut Plans) -> Result<(), JobRunError> {
        if !self.prefers_cache() {
            return Ok(());
        }
        let mut left = Plans::new();
        for (index, plan) in std::mem::take(plans) {
            if board.halt().is_cancelled() {
                board.cut_off();
                continue;
            }
            let span = image_span(index);
            let taken = async {
                let Some(asset) = self.cached(&board.slot(index), index, &plan).await? else { return Ok(false) };
                info!(file_path = asset.file_path, "an image made before is used");
                self.complete(board, asset, &plan).await.map(|()| true)
            };
            if !taken.instrument(span).await? {
                left.insert(index, plan);
            }
        }
        *plans = left;
        Ok(())
    }

    /// After a cause that every request would meet: what was not made may have been made before.
    pub(super) async fn fill_from_cache(&self, board: &Board, plans: &Plans) -> Result<(), JobRunError> {
        let Some((code, message)) = board.fatal_cause() else { return Ok(()) };
        for index in board.missing() {
            let Some(plan) = plans.get(&index) else { continue };
            if self.slice.is_cancelled() {
                break;
            }
            let span = image_span(index);
            let filled = async {
                let cause = Unmade::Job(code, message.clone());
                match self.stand_in(&board.slot(index), index, plan, &cause).await? {
                    Some(asset) => self.complete(board, asset, plan).await,
                    None => Ok(()),
                }
            };
            filled.instrument(span).await?;
        }
        Ok(())
    }

    /// An image made before, in place of one that could not be made; says so in the log.
    pub(super) async fn stand_in(
        &self,
        slot: &Slot,
        index: u32,
        plan: &Plan,
        cause: &Unmade,
    ) -> Result<Option<Asset>, JobRunError> {
        if self.cache_mode() == CacheMode::Never || !cause.is_the_providers() {
            return Ok(None);
        }
        let asset = self.cached(slot, index, plan).await?;
        if let Some(asset) = &asset {
            let (code, reason) = cause.told();
            warn!(code, reason, file_path = asset.file_path, "an image made before stands in");
        }
        Ok(asset)
    }

    /// The newest image of the same fingerprint whose file is there and whole, under this job's own path.
    async fn cached(&self, slot: &Slot, index: u32, plan: &Plan) -> Result<Option<Asset>, JobRunError> {
        for found in self.workshop.store.cached_images(plan.fingerprint).await? {
            match self.copied(slot, index, &found).await {
                Ok(Some(file_path)) => return Ok(Some(self.cached_asset(slot, index, plan, found, file_path))),
                Ok(None) => {}
                Err(Unmade::Broken(error)) => return Err(error.into()),
                Err(unmade) => {
                    let (code, reason) = unmade.told();
                    warn!(code, reason, cached = found.file_path, "a cached image cannot be used");
                }
            }
        }
        Ok(None)
    }

    /// Brings a cached file under this job's own path; `None` where it is missing, damaged or too large by today's rules.
    async fn copied(&self, slot: &Slot, index: u32, found: &CachedImage) -> Result<Option<String>, Unmade> {
        if found.size_bytes >= self.workshop.finisher.spec().max_bytes {
            return Ok(None);
        }
        let Some(bytes) = self.workshop.storage.read(&found.file_path, found.size_bytes..=found.size_bytes).await?
        else {
            warn!(cached = found.file_path, "a cached image is not there any more");
            return Ok(None);
        };
        if let Err(why) = self.workshop.finisher.is_still_good(bytes.clone(), found.sha256.clone()).await {
            warn!(cached = found.file_path, why, "a cached image cannot be used");
            return Ok(None);
        }
        let file_path = self.reserve_path(slot, index, found.format).await?;
        if !self.workshop.storage.copy_new(&found.file_path, &file_path, bytes.clone()).await? {
            self.put_over(&file_path, bytes).await?;
        }
        Ok(Some(file_path))
    }

    fn cached_asset(&self, slot: &Slot, index: u32, plan: &Plan, found: CachedImage, file_path: String) -> Asset {
        let CachedImage { file_path: _, format, size_bytes, sha256, seed } = found;
        let stored = Stored { file_path, format, size_bytes, sha256 };
        self.asset(slot, index, plan, stored, seed, Origin::Cache)
    }
}

/// For the log.
impl Unmade {
    /// Code and sentence.
    pub(super) fn told(&self) -> (&'static str, String) {
        match self {
            Self::Image(code, message) => (code.as_str(), message.clone()),
            Self::Job(code, message) => (code.as_str(), message.clone()),
            Self::Broken(error) => ("database", causes::joined(error)),
            Self::Stopped => ("stopped", "told to stop".to_owned()),
        }
    }
}
