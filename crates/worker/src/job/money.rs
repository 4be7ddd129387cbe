//! What a job may cost: looked at before its first request, and again before each.

use std::sync::OnceLock;

use async_trait::async_trait;
use domain::failure::JobFailureCode;
use stability_client::{Balance, Budget, BudgetError, Receipt};
use tracing::warn;
use uuid::Uuid;

use super::board::Board;
use super::{Run, Workshop};
use crate::causes;
use crate::settings::Settings;
use crate::store::{Lease, MicroUsd, PaidImage, Payment, StoreError};

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
        MicroUsd::from_usd(self.image_usd).times(images)
    }

    /// How many requests `limit_usd` pays for; `None` where there is no limit.
    fn requests_for(&self, limit_usd: Option<f64>) -> Option<u32> {
        MicroUsd::from_usd(self.image_usd).times_in(MicroUsd::from_usd(limit_usd?))
    }
}

/// An amount for people: cents, or as many digits as it takes.
fn dollars(usd: f64) -> String {
    let cents = format!("{usd:.2}");
    let exact = format!("{usd:.6}");
    if exact.ends_with("0000") { cents } else { exact.trim_end_matches('0').to_owned() }
}

impl Run<'_> {
    /// Why the images that are to be made may not be begun, for want of money.
    pub(super) async fn too_dear(&self, board: &Board) -> Option<(JobFailureCode, String)> {
        let images = u32::try_from(board.missing().len()).unwrap_or(u32::MAX);
        if images == 0 || board.halt().is_cancelled() {
            return None;
        }
        let prices = self.workshop.prices;
        let cost = dollars(prices.of(images));
        // Of a job that has begun, each request is checked alone.
        let limit = self.command.config.max_cost_usd.filter(|_| board.charged() == 0);
        if let Some(limit) = limit.filter(|limit| prices.requests_for(Some(*limit)).is_some_and(|paid| paid < images)) {
            let message = format!("images to make: {images}, for about USD {cost}; max_cost_usd is {}", dollars(limit));
            return Some((JobFailureCode::BudgetExceeded, message));
        }
        if !prices.check_balance {
            return None;
        }
        let balance = self.slice.run_until_cancelled(self.workshop.client.balance()).await?;
        match balance {
            Ok(Balance { credits, .. }) => {
                let left = credits * USD_PER_CREDIT;
                (left + 1e-9 < prices.of(images)).then(|| {
                    let left = dollars(left);
                    let message = format!(
                        "images to make: {images}, for about USD {cost}; the account has {credits:.1} credits (USD {left})"
                    );
                    (JobFailureCode::InsufficientCredits, message)
                })
            }
            Err(error) => {
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
            lease: self.lease,
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
    lease: Lease,
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

    /// Pays, or says why not.
    async fn charged_once(&self) -> Result<Result<Receipt, String>, BudgetError> {
        let prices = self.workshop.prices;
        if !self.board.charge(self.index, self.affordable) {
            let spent = dollars(prices.of(self.board.charged()));
            return Ok(Err(format!(
                "the job has cost USD {spent}, and one more request would go above its max_cost_usd"
            )));
        }
        let paid = self.workshop.store.pay(self.image(), self.price(), prices.daily_usd.map(MicroUsd::from_usd)).await;
        match paid {
            Ok(Payment::Paid(day)) => Ok(Ok(Receipt(day))),
            Ok(Payment::OverBudget) => {
                self.board.uncharge(self.index);
                let limit = dollars(prices.daily_usd.unwrap_or_default());
                Ok(Err(format!("today's budget of all workers, WORKER_DAILY_BUDGET_USD={limit}, is used up")))
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

    /// Waits while payments for other images of the job are under way, since what they paid may turn out to be free. `true` as soon as one has
    /// had its end after `ended` others.
    async fn may_change(&self, ended: u64) -> bool {
        loop {
            // Listened to before looking, so that nothing is missed in between.
            let changed = self.board.payments_changed();
            if self.board.payments_ended() != ended {
                return true;
            }
            if self.board.payments_under_way() == 0 || self.board.halt().run_until_cancelled(changed).await.is_none() {
                return false;
            }
        }
    }

    fn image(&self) -> PaidImage {
        PaidImage { lease: self.lease, asset_id: self.asset_id }
    }

    fn price(&self) -> MicroUsd {
        MicroUsd::from_usd(self.workshop.prices.image_usd)
    }
}

#[async_trait]
impl Budget for Purse<'_> {
    async fn charge(&self) -> Result<Receipt, BudgetError> {
        loop {
            let ended = self.board.payments_ended();
            let why = match self.charged_once().await? {
                Ok(receipt) => return Ok(receipt),
                Err(why) => why,
            };
            if !self.may_change(ended).await {
                return Err(BudgetError::Exceeded(why));
            }
        }
    }

    async fn settle(&self, Receipt(day): Receipt, charged: bool) {
        if !charged && let Err(error) = self.workshop.store.take_back(self.image(), self.price(), &day).await {
            warn!(error = causes::joined(&error), "a request that was free stays paid");
        }
        if charged {
            self.workshop.metrics.spent(self.workshop.prices.image_usd);
        }
        self.board.settle_payment(self.index, charged);
    }
}
