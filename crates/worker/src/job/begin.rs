//! The beginning and the middle of a try: what is missing is planned, and made.

use domain::asset_path;
use domain::failure::ImageFailureCode;
use domain::recipe::Recipe;
use domain::style::Style;
use futures_util::{StreamExt, stream};
use tracing::{Instrument, warn};

use super::board::Board;
use super::make::image_span;
use super::{JobRunError, Plans, Run, plan};
use crate::causes;
use crate::telemetry::metrics::Stage;

impl Run<'_> {
    /// Plans what is missing and makes it, unless it would cost too much or could not be stored.
    pub(super) async fn begun(&self, board: &Board, style: &Style) -> Result<Plans, JobRunError> {
        // Translation may cost something too, so that money is looked at first where it is known how much is needed.
        if !self.prefers_cache()
            && let Some((code, message)) = self.too_dear(board).await
        {
            board.set_fatal(code, message);
        }
        let mut plans = self.plan(board, style).await?;
        self.take_preferred(board, &mut plans).await?;
        if self.prefers_cache()
            && let Some((code, message)) = self.too_dear(board).await
        {
            board.set_fatal(code, message);
        }
        if board.halt().is_cancelled() && !plans.is_empty() {
            // Their turn has not come.
            board.cut_off();
        } else if !plans.is_empty() && self.can_store(board, &plans).await? {
            self.make_images(board, &plans).await?;
        }
        Ok(plans)
    }

    /// Whether files can be stored at this moment: no picture is paid for that could not be kept. Where not, its images have failed so.
    async fn can_store(&self, board: &Board, plans: &Plans) -> Result<bool, JobRunError> {
        // Named after the job, so that what a kill leaves behind goes with its next try.
        let path = format!("{}/.check-{}", asset_path::folder(self.command.project_id), self.command.job_id);
        let Err(error) = self.workshop.storage.check_at(&path).await else { return Ok(true) };
        for (index, plan) in plans {
            let (code, message) = (ImageFailureCode::Storage, causes::joined(&error));
            let failing = self.fail(board, *index, code, message, code.may_pass(), Some(&plan.recipe));
            failing.instrument(image_span(*index)).await?;
        }
        Ok(false)
    }

    /// Puts the texts of what is missing into English and composes their prompts. What cannot be asked for has failed then.
    async fn plan(&self, board: &Board, style: &Style) -> Result<Plans, JobRunError> {
        let missing = board.missing();
        let descriptions: Vec<String> = missing.iter().map(|index| board.slot(*index).description).collect();
        let texts = descriptions.iter().map(String::as_str).chain(plan::texts(style));
        let translating = self.workshop.translator.english(texts, board.halt());
        let english = self.workshop.metrics.stage(Stage::Translate, translating).await?;
        let mut plans = Plans::new();
        for (index, description) in missing.into_iter().zip(&descriptions) {
            match self.workshop.planner.plan(self.command, style, &english, index, description) {
                Ok(plan) => {
                    let Recipe { left_out, negative_left_out, .. } = &plan.recipe;
                    if !left_out.is_empty() || !negative_left_out.is_empty() {
                        let (left_out, negative_left_out) = (left_out.join(", "), negative_left_out.join(", "));
                        warn!(index, left_out, negative_left_out, "the prompt was shortened");
                    }
                    plans.insert(index, plan);
                }
                // What was cut off while it was translated has not failed.
                Err(unplannable) if unplannable.may_pass && board.halt().is_cancelled() => board.cut_off(),
                Err(unplannable) => self.fail_unplannable(board, index, unplannable).await?,
            }
        }
        Ok(plans)
    }

    /// Makes what is planned, in order, a bounded number at once. No image is begun that cannot help the job any more.
    async fn make_images(&self, board: &Board, plans: &Plans) -> Result<(), JobRunError> {
        let asked = self.command.config.max_concurrent.map_or(usize::MAX, usize::from);
        let at_once = asked.min(self.workshop.max_concurrent.get());
        let mut images = stream::iter(plans.keys().copied())
            .map(|index| async move {
                if board.halt().is_cancelled() {
                    board.cut_off();
                    return Ok(());
                }
                self.make_image(board, index, &plans[&index]).await
            })
            .buffer_unordered(at_once);
        let mut made = Ok(());
        while let Some(image) = images.next().await {
            // The first failure of our own stops new images; those in flight still come to their end.
            if image.is_err() {
                board.give_up();
            }
            made = made.and(image);
        }
        made
    }
}
