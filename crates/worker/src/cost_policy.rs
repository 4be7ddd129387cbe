//! Prices and spending limits of this process.

use domain::money::MicroUsd;

use crate::settings::Settings;

/// Price of one account credit in US dollars. Source: Stability's pricing page.
const USD_PER_CREDIT: f64 = 0.01;

/// Prices and spending limits of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CostPolicy {
    price_per_image_usd: f64,
    daily_budget_usd: Option<f64>,
    check_balance: bool,
}

impl CostPolicy {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            price_per_image_usd: settings.stability.cost_per_image_usd,
            daily_budget_usd: settings.jobs.daily_budget_usd,
            check_balance: settings.stability.check_balance,
        }
    }

    /// What all workers together may spend on one day, as far as this process is concerned.
    pub(crate) fn daily_budget(&self) -> Option<MicroUsd> {
        self.daily_budget_usd.map(MicroUsd::from_usd)
    }

    /// The price of one request.
    pub(crate) fn image_price(&self) -> MicroUsd {
        MicroUsd::from_usd(self.price_per_image_usd)
    }

    /// The cost of this many requests, in US dollars.
    pub(crate) fn cost_usd(&self, requests: u32) -> f64 {
        self.image_price().total_usd(requests)
    }

    /// Whether this many credits pay for this number of requests.
    pub(crate) fn is_covered_by(&self, credits: f64, requests: u32) -> bool {
        credits_to_usd(credits) + 1e-9 >= self.cost_usd(requests)
    }

    /// Whether the account's credits are checked before a job starts.
    pub(crate) fn checks_balance(&self) -> bool {
        self.check_balance
    }

    /// The number of requests that `limit_usd` pays for; `None` if there is no limit.
    pub(crate) fn affordable_requests(&self, limit_usd: Option<f64>) -> Option<u32> {
        self.image_price().affordable_count(MicroUsd::from_usd(limit_usd?))
    }
}

/// What an amount of credits is worth, in US dollars.
pub(crate) fn credits_to_usd(credits: f64) -> f64 {
    credits * USD_PER_CREDIT
}

/// Formats an amount in US dollars with two decimals, or with up to six if it needs more.
pub(crate) fn format_usd(usd: f64) -> String {
    let cents = format!("{usd:.2}");
    let exact = format!("{usd:.6}");
    if exact.ends_with("0000") { cents } else { exact.trim_end_matches('0').to_owned() }
}
