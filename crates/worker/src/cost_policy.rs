//! Prices and spending limits of this process.

use domain::failure::JobFailureCode;
use domain::money::MicroUsd;
use domain::upscaler::Upscaler;
use stability_client::{Credits, Engine, FastUpscale};

use crate::settings::Settings;

/// Prices and spending limits of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CostPolicy {
    /// The price of one image, whatever the engine; `None`: the price of its engine.
    price_per_image_usd: Option<f64>,
    default_engine: Engine,
    daily_budget_usd: Option<f64>,
    check_balance: bool,
}

impl CostPolicy {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            price_per_image_usd: settings.stability.cost_per_image_usd,
            default_engine: settings.stability.engine,
            daily_budget_usd: settings.jobs.daily_budget_usd,
            check_balance: settings.stability.check_balance,
        }
    }

    /// What all workers together may spend on one day, as far as this process is concerned.
    pub(crate) fn daily_budget(&self) -> Option<MicroUsd> {
        self.daily_budget_usd.map(MicroUsd::from_usd)
    }

    /// The prices of a job's requests.
    pub(crate) fn request_prices(&self, engine: Engine, upscaler: Upscaler) -> RequestPrices {
        let upscale = match upscaler {
            Upscaler::Lanczos => MicroUsd::default(),
            Upscaler::Fast => MicroUsd::from_usd(FastUpscale::PRICE.usd()),
        };
        RequestPrices { generation: self.image_price(engine), upscale }
    }

    /// The price of one request for an image.
    fn image_price(&self, engine: Engine) -> MicroUsd {
        // Settings and commands name only engines with a price.
        let list_price = engine.price().map(Credits::usd);
        MicroUsd::from_usd(self.price_per_image_usd.or(list_price).unwrap_or_default())
    }

    /// The price of one request of a job that names no engine.
    pub(crate) fn default_image_price(&self) -> MicroUsd {
        self.image_price(self.default_engine)
    }

    /// Whether the account's credits are checked before a job starts.
    pub(crate) fn checks_balance(&self) -> bool {
        self.check_balance
    }
}

/// The prices of a job's requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestPrices {
    /// A request for an image.
    pub(crate) generation: MicroUsd,
    /// A request to upscale it; 0 if the job asks for none.
    pub(crate) upscale: MicroUsd,
}

impl RequestPrices {
    /// What one image costs if no request must be repeated.
    pub(crate) fn per_image(&self) -> MicroUsd {
        self.generation.plus(self.upscale)
    }

    /// Why this many images may not be paid for: they cost more than `max_cost_usd`.
    pub(crate) fn find_max_cost_excess(&self, images: u32, max_cost_usd: f64) -> Option<(JobFailureCode, String)> {
        let affordable = self.per_image().affordable_count(MicroUsd::from_usd(max_cost_usd));
        affordable.is_some_and(|affordable| affordable < images).then(|| {
            let limit = format_usd(max_cost_usd);
            let cost = format_usd(self.per_image().total_usd(images));
            let message = format!("images to make: {images}, for about USD {cost}; max_cost_usd is {limit}");
            (JobFailureCode::BudgetExceeded, message)
        })
    }

    /// Why this many images cannot be paid for: they cost more than the account's credits are worth.
    pub(crate) fn find_credit_shortfall(&self, images: u32, credits: f64) -> Option<(JobFailureCode, String)> {
        let cost_usd = self.per_image().total_usd(images);
        (!is_covered_by(cost_usd, credits)).then(|| {
            let (cost, remaining) = (format_usd(cost_usd), format_usd(credits_to_usd(credits)));
            let message = format!(
                "images to make: {images}, for about USD {cost}; the account has {credits:.1} credits (USD {remaining})"
            );
            (JobFailureCode::InsufficientCredits, message)
        })
    }
}

/// What an amount of credits is worth, in US dollars.
pub(crate) fn credits_to_usd(credits: f64) -> f64 {
    credits * Credits::USD
}

/// Whether this many credits pay for a cost in US dollars.
pub(crate) fn is_covered_by(cost_usd: f64, credits: f64) -> bool {
    credits_to_usd(credits) + 1e-9 >= cost_usd
}

/// Formats an amount in US dollars with two decimals, or with up to six if it needs more.
pub(crate) fn format_usd(usd: f64) -> String {
    let cents = format!("{usd:.2}");
    let exact = format!("{usd:.6}");
    if exact.ends_with("0000") { cents } else { exact.trim_end_matches('0').to_owned() }
}
