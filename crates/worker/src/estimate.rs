//! Estimates what a command would cost and how long it would take, without running it.
//!
//! The checks are those of a run: the same plan, cache lookup, prices, limits and gate.

mod duration;
mod inputs;

use domain::command::{CacheMode, Command};
use domain::failure::{ImageFailureCode, JobFailureCode};
use domain::money::MicroUsd;
use domain::outcome::{ImageFailure, ImageState, Tally};
use domain::style::Style;
use domain::upscaler::Upscaler;
use schemars::JsonSchema;
use serde::Serialize;
use store::{ClaimOptions, ClaimPreview, ClaimedImage, KnownState, Lookup, Store, StoreError};
use uuid::Uuid;

use crate::cost_policy::{CostPolicy, RequestPrices, format_usd};
use crate::error_chain::error_chain;
use crate::image::{ImageTask, has_cached};
use crate::image_pool::ImagePool;
use crate::job::plan::{Plan, PlanFailure, Planner, style_texts, upscaler_conflict};
use crate::settings::Settings;
use crate::translation::find_known;
pub(crate) use duration::DurationEstimate;
pub(crate) use inputs::{BUDGET_SHORTAGE, Budget, Inputs};

/// What a command would cost and how long it would take. What is not known is `None`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Estimate {
    pub(crate) job_id: Uuid,
    pub(crate) project_id: i64,
    /// Number of images of the command.
    pub(crate) images: u32,
    /// Images that an earlier attempt at the job has completed.
    pub(crate) completed: Option<u32>,
    /// Images that are in the cache. Only with `cache: prefer` are they not generated.
    pub(crate) cached: Option<u32>,
    /// Images that would be generated, if no request fails.
    pub(crate) to_generate: Option<u32>,
    pub(crate) engine: String,
    pub(crate) upscaler: Upscaler,
    /// Price of one generated image, its upscale included.
    pub(crate) price_per_image_usd: f64,
    /// What the requests would cost.
    pub(crate) cost_usd: Option<f64>,
    pub(crate) translation: TranslationEstimate,
    pub(crate) duration: DurationEstimate,
    pub(crate) budget: Budget,
    /// What would stop or delay the job.
    pub(crate) warnings: Vec<Warning>,
    /// Why some values are not known.
    pub(crate) unknown: Vec<String>,
}

/// The texts of a command that are not in English.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub(crate) struct TranslationEstimate {
    /// Number of different texts that need a translation.
    pub(crate) texts: usize,
    /// Those whose translation is in the phrase book or the database. `None` without a database.
    pub(crate) known: Option<usize>,
}

/// Why a job would not run at once, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Warning {
    /// A failure code, a reason of the account gate, or `already_ended`, `job_id_conflict`, `no_worker` or
    /// [`BUDGET_SHORTAGE`].
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Warning {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Estimates commands by the settings of this process.
pub(crate) struct Estimator {
    settings: Settings,
    planner: Planner,
    cost_policy: CostPolicy,
    default_style: Style,
    pool: ImagePool,
    inputs: Inputs,
}

/// The images of a command by what a run would do with them.
struct Forecast {
    preview: ClaimPreview,
    translation: TranslationEstimate,
    cached: Option<u32>,
    /// Images that would be generated, unless the job is stopped before.
    to_generate: Option<u32>,
    /// Why the job would end without a request.
    stopped: Option<Warning>,
    warnings: Vec<Warning>,
}

impl Estimator {
    /// Creates an estimator; `pool` verifies cached images.
    pub(crate) fn new(settings: &Settings, pool: ImagePool, inputs: Inputs) -> Self {
        Self {
            settings: settings.clone(),
            planner: Planner::new(settings),
            cost_policy: CostPolicy::new(settings),
            default_style: settings.default_style(),
            pool,
            inputs,
        }
    }

    /// The day's budget, without this estimate.
    pub(crate) fn budget(&self) -> Budget {
        self.inputs.budget
    }

    /// Estimates one command. A database that fails meanwhile counts as not known.
    pub(crate) async fn estimate(&self, command: &Command) -> Estimate {
        let mut unknown = self.inputs.unknown.clone();
        let mut store = self.inputs.store.as_ref();
        let forecast = match self.forecast(command, store).await {
            Ok(forecast) => forecast,
            Err(error) => {
                unknown.push(error_chain(&error));
                store = None;
                self.forecast(command, store).await.expect("without a database, nothing can fail")
            }
        };
        let Forecast { preview, translation, cached, to_generate, stopped, mut warnings } = forecast;
        let upscaler = command.config.upscaler.unwrap_or_default();
        let prices = self.prices(&preview.engine, upscaler);
        let mut to_generate = if stopped.is_some() { Some(0) } else { to_generate };
        if let Some(warning) = stopped {
            warnings.insert(0, warning);
        } else {
            if let Some((affordable, warning)) = find_partial_excess(command, &preview, prices, to_generate) {
                to_generate = Some(affordable);
                warnings.push(warning);
            }
            warnings.extend(self.inputs.delays());
            warnings.extend(to_generate.and_then(|images| self.budget().find_shortage(images, prices.per_image())));
        }
        let tally = Tally::from_images(preview.images.iter().map(|image| &image.state));
        let duration = duration::estimate(&self.settings, &self.inputs, command, to_generate, upscaler);
        Estimate {
            job_id: command.job_id,
            project_id: command.project_id,
            images: to_u32(command.image_descriptions.len()),
            completed: store.is_some().then_some(tally.completed),
            cached,
            to_generate,
            engine: preview.engine,
            upscaler,
            price_per_image_usd: prices.per_image().usd(),
            cost_usd: to_generate.map(|images| prices.per_image().total_usd(images)),
            translation,
            duration,
            budget: self.budget(),
            warnings,
            unknown,
        }
    }

    /// A run rejects an unknown engine before any price counts.
    fn prices(&self, engine: &str, upscaler: Upscaler) -> RequestPrices {
        self.cost_policy.request_prices(engine.parse().unwrap_or_default(), upscaler)
    }

    /// Predicts what a run would do.
    async fn forecast(&self, command: &Command, store: Option<&Store>) -> Result<Forecast, StoreError> {
        let terms = ClaimOptions {
            lease_duration: self.settings.jobs.lease,
            default_style: &self.default_style,
            default_engine: self.settings.stability.engine.id(),
            reply: None,
            // Nothing is claimed.
            worker: "",
        };
        let mut preview = match store {
            Some(store) => store.preview_claim(command, terms).await?,
            None => ClaimPreview::without_database(command, terms),
        };
        let missing: Vec<&ClaimedImage> = preview.images.iter().filter(|image| image.state.is_missing()).collect();
        let descriptions = missing.iter().map(|image| image.description.as_str());
        let texts: Vec<&str> = descriptions.chain(style_texts(&preview.style)).collect();
        let (mut english, untranslated) =
            find_known(&self.settings.translation.phrase_book, store, Lookup::ForEstimate, texts.iter().copied())
                .await?;
        let known = english.len();
        let translation =
            TranslationEstimate { texts: known + untranslated.len(), known: store.is_some().then_some(known) };
        let has_gemini = self.settings.translation.gemini.is_some();
        if has_gemini || store.is_none() {
            // The other rules of a request are checked with any text.
            english.set_placeholders(&untranslated);
        } else {
            english.set_untranslatable(&untranslated);
        }
        let Plan { tasks, failures } = self.planner.plan(command, &preview.engine, &preview.style, &english, &missing);
        let cache_mode = command.config.cache.unwrap_or_default();
        let is_untranslated = |text: &str| untranslated.contains(&text);
        let style_is_untranslated = style_texts(&preview.style).any(is_untranslated);
        // An image with a new translation counts as not cached.
        let is_planned = |task: &&ImageTask| !style_is_untranslated && !is_untranslated(&task.description);
        let fingerprints: Vec<Uuid> = tasks.iter().filter(is_planned).map(|task| task.fingerprint).collect();
        let cached = self.count_cached(store, cache_mode, &fingerprints).await?;
        // Without a database and Gemini, it is not known whether these images can be requested.
        let is_certain = has_gemini || store.is_some() || untranslated.is_empty();
        let requests = to_u32(tasks.len());
        let to_generate = match cache_mode {
            CacheMode::Prefer => cached.map(|cached| requests.saturating_sub(cached)),
            CacheMode::Never | CacheMode::OnFailure => Some(requests),
        };
        let to_generate = to_generate.filter(|_| is_certain);
        // Funds are checked before the images are planned, unless cached images may reduce the number of requests.
        let to_pay = match cache_mode {
            CacheMode::Prefer => to_generate,
            CacheMode::Never | CacheMode::OnFailure => Some(to_u32(missing.len())),
        };
        let warnings = failures.iter().map(|(index, failure)| failed_image(*index, failure)).collect();
        set_failures(&mut preview, &failures);
        let stopped = self.find_stop(command, &preview, to_pay);
        Ok(Forecast { preview, translation, cached, to_generate, stopped, warnings })
    }

    async fn count_cached(
        &self,
        store: Option<&Store>,
        cache_mode: CacheMode,
        fingerprints: &[Uuid],
    ) -> Result<Option<u32>, StoreError> {
        if cache_mode == CacheMode::Never {
            return Ok(Some(0));
        }
        let (Some(store), Some(storage)) = (store, self.inputs.storage.as_ref()) else { return Ok(None) };
        let mut cached = 0;
        for fingerprint in fingerprints {
            cached += u32::from(has_cached(store, storage, &self.pool, *fingerprint).await?);
        }
        Ok(Some(cached))
    }

    /// Why the job would end without a request; `to_pay` is the number of images whose price is checked.
    fn find_stop(&self, command: &Command, preview: &ClaimPreview, to_pay: Option<u32>) -> Option<Warning> {
        match preview.state {
            KnownState::Conflict => {
                return Some(Warning::new("job_id_conflict", "the job id belongs to another command"));
            }
            KnownState::Ended => return Some(Warning::new("already_ended", "the job has ended")),
            KnownState::New | KnownState::Claimed => {}
        }
        if let Some(error) = preview.over.as_ref().and_then(|over| over.error(false)) {
            return Some(Warning::new(error.code.as_str(), error.message));
        }
        if let Some(message) = upscaler_conflict(command, &preview.engine) {
            return Some(Warning::new("invalid_request", message));
        }
        let tally = Tally::from_images(preview.images.iter().map(|image| &image.state));
        if !tally.can_reach(command.config.min_success_rate()) {
            let message = format!("{} of {} images would fail", tally.permanent_failures, tally.total);
            return Some(Warning::new("success_rate_too_low", message));
        }
        let prices = self.prices(&preview.engine, command.config.upscaler.unwrap_or_default());
        let images = to_pay.filter(|images| *images > 0)?;
        // After charged attempts, the limit is checked only before each request.
        let limit = command.config.max_cost_usd.filter(|_| MicroUsd::from_usd(preview.cost_usd) == MicroUsd::default());
        let excess = limit.and_then(|limit| prices.find_max_cost_excess(images, limit));
        let credits = self.inputs.credits.filter(|_| self.cost_policy.checks_balance());
        let excess = excess.or_else(|| prices.find_credit_shortfall(images, credits?));
        excess.map(|(code, message)| Warning::new(code.as_str(), message))
    }
}

/// The number of images that `max_cost_usd` still pays for, if a job that has spent something reaches it. Its limit is
/// checked before each request only.
fn find_partial_excess(
    command: &Command,
    preview: &ClaimPreview,
    prices: RequestPrices,
    to_generate: Option<u32>,
) -> Option<(u32, Warning)> {
    let (images, limit) = to_generate.zip(command.config.max_cost_usd)?;
    let spent = MicroUsd::from_usd(preview.cost_usd);
    let left = MicroUsd((MicroUsd::from_usd(limit).0 - spent.0).max(0));
    let affordable = prices.per_image().affordable_count(left).filter(|count| *count < images && spent.0 > 0)?;
    let left = format_usd(left.usd());
    let message = format!("USD {left} of max_cost_usd is left, for {affordable} of {images} images");
    Some((affordable, Warning::new(JobFailureCode::BudgetExceeded.as_str(), message)))
}

/// Sets the state of images that cannot be requested.
fn set_failures(preview: &mut ClaimPreview, failures: &[(u32, PlanFailure)]) {
    for image in &mut preview.images {
        if let Some((_, failure)) = failures.iter().find(|(index, _)| *index == image.index) {
            image.state = ImageState::Failed(ImageFailure {
                index: image.index,
                description: image.description.clone(),
                code: failure.code,
                message: failure.message.clone(),
                attempts: 0,
                retryable: failure.retryable,
            });
        }
    }
}

fn failed_image(index: u32, failure: &PlanFailure) -> Warning {
    let code: ImageFailureCode = failure.code;
    Warning::new(code.as_str(), format!("image {index} would fail: {}", failure.message))
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
