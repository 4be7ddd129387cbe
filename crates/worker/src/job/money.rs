//! What a job may cost: looked at before its first request, and again before each.

use std::sync::OnceLock;

use async_trait::async_trait;
use domain::failure::JobFailureCode;
use stability_client::{Budget, BudgetError, Receipt};
use tracing::warn;
use uuid::Uuid;

use super::board::Board;
use super::make::{Unmade, unmade};
use super::{Run, Workshop};
use crate::causes;
use crate::settings::Settings;
use crate::store::{MicroUsd, PaidImage, Payment, StoreError};

/// A credit of the account in US dollars. Source: Stability's pricing page.
const USD_PER_CREDIT: f64 = 0.01;

/// Prices and limits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prices {
    image_usd: f64,
    daily_usd: Option<f64>,
    check_balance: bool,
}

impl Prices {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            image_usd: settings.stability.cost_per_image_usd,
            daily_usd: settings.jobs.daily_budget_usd,
            check_balance: settings.stability.check_balance,
        }
    }

    /// What so many images cost, in US dollars.
    pub(super) fn of(&self, images: u32) -> f64 {
        f64::from(images) * self.image_usd
    }

    /// How many requests `limit_usd` pays for; `None` where there is no limit.
    fn requests_for(&self, limit_usd: Option<f64>) -> Option<u32> {
        MicroUsd::from_usd(self.image_usd).times_in(MicroUsd::from_usd(limit_usd?))
    }
}

impl Run<'_> {
    /// Why the images that are to be made may not be begun, for want of money.
    pub(super) async fn too_dear(&self, board: &Board, images: u32) -> Option<(JobFailureCode, String)> {
        if images == 0 {
            return None;
        }
        let prices = self.workshop.prices;
        let cost = prices.of(images);
        // Of a job that has begun, each request is checked alone.
        let limit = self.command.config.max_cost_usd.filter(|_| board.charged() == 0);
        if let Some(limit) = limit.filter(|limit| prices.requests_for(Some(*limit)).is_some_and(|paid| paid < images)) {
            let message = format!("images to make: {images}, for about USD {cost:.2}; max_cost_usd is {limit:.2}");
            return Some((JobFailureCode::BudgetExceeded, message));
        }
        if !prices.check_balance {
            return None;
        }
        match self.workshop.client.balance().await {
            Ok(balance) => {
                let left = balance.credits * USD_PER_CREDIT;
                (left + 1e-9 < cost).then(|| {
                    let message = format!(
                        "images to make: {images}, for about USD {cost:.2}; the account has {:.1} credits (USD {left:.2})",
                        balance.credits
                    );
                    (JobFailureCode::InsufficientCredits, message)
                })
            }
            Err(error) => {
                if let Unmade::Job(code, message) = unmade(&error) {
                    return Some((code, message));
                }
                warn!(error = causes::joined(&error), "the account's credits are not known; the job goes on");
                None
            }
        }
    }

    /// Pays for the requests of one image.
    pub(super) fn purse<'a>(&'a self, board: &'a Board, index: u32, asset_id: Uuid) -> Purse<'a> {
        let affordable = self.workshop.prices.requests_for(self.command.config.max_cost_usd);
        Purse {
            workshop: self.workshop,
            board,
            index,
            job_id: self.command.job_id,
            asset_id,
            affordable,
            broken: OnceLock::new(),
        }
    }
}

/// Pays for the requests of one image: out of what the job may cost, and out of the day's budget.
pub(super) struct Purse<'a> {
    workshop: &'a Workshop,
    board: &'a Board,
    index: u32,
    job_id: Uuid,
    asset_id: Uuid,
    /// The requests that the job may be charged for in all.
    affordable: Option<u32>,
    broken: OnceLock<StoreError>,
}

impl Purse<'_> {
    /// The database's failure, where it could not be paid for that reason.
    pub(super) fn into_broken(self) -> Option<StoreError> {
        self.broken.into_inner()
    }

    fn image(&self) -> PaidImage {
        PaidImage { job_id: self.job_id, asset_id: self.asset_id }
    }

    fn price(&self) -> MicroUsd {
        MicroUsd::from_usd(self.workshop.prices.image_usd)
    }
}

#[async_trait]
impl Budget for Purse<'_> {
    async fn charge(&self) -> Result<Receipt, BudgetError> {
        if !self.board.charge(self.index, self.affordable) {
            let spent = self.workshop.prices.of(self.board.charged());
            return Err(BudgetError::Exceeded(format!(
                "the job has cost USD {spent:.2}, and one more request would go above its max_cost_usd"
            )));
        }
        let daily = self.workshop.prices.daily_usd;
        let paid = self.workshop.store.pay(self.image(), self.price(), daily.map(MicroUsd::from_usd)).await;
        match paid {
            Ok(Payment::Paid(day)) => Ok(Receipt(day)),
            Ok(Payment::OverBudget) => {
                self.board.uncharge(self.index);
                let limit = daily.unwrap_or_default();
                Err(BudgetError::Exceeded(format!(
                    "today's budget of all workers, WORKER_DAILY_BUDGET_USD={limit:.2}, is used up"
                )))
            }
            Err(error) => {
                self.board.uncharge(self.index);
                let message = causes::joined(&error);
                // Only the first one is told.
                let _ = self.broken.set(error);
                Err(BudgetError::Unavailable(message))
            }
        }
    }

    async fn refund(&self, Receipt(day): Receipt) {
        self.board.refund(self.index);
        if let Err(error) = self.workshop.store.take_back(self.image(), self.price(), &day).await {
            warn!(error = causes::joined(&error), "a request that was free stays paid");
        }
    }
}
