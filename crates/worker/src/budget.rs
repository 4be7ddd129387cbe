//! Money for one job: what it may cost is checked before its first request, and again before each.

use std::sync::Arc;

use async_trait::async_trait;
use domain::failure::JobFailureCode;
use domain::money::MicroUsd;
use stability_client::{Balance, Budget, BudgetError, Client, Reservation};
use store::{Lease, PaidImage, Payment, Store, StoreError};
use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

use crate::cancel::{CancelReason, CancelToken};
use crate::error_chain::error_chain;
use crate::settings::Settings;
use crate::telemetry::Metrics;

/// A credit of the account in US dollars. Source: Stability's pricing page.
const USD_PER_CREDIT: f64 = 0.01;

/// Prices and limits of this process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prices {
    image_usd: f64,
    daily_usd: Option<f64>,
    check_balance: bool,
}

impl Prices {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            image_usd: settings.stability.cost_per_image_usd,
            daily_usd: settings.jobs.daily_budget_usd,
            check_balance: settings.stability.check_balance,
        }
    }

    /// The price of one request.
    fn image(&self) -> MicroUsd {
        MicroUsd::from_usd(self.image_usd)
    }

    /// The cost of this many requests, in US dollars.
    pub(crate) fn cost(&self, requests: u32) -> f64 {
        self.image().times(requests)
    }

    /// How many requests `limit_usd` pays for; `None` where there is no limit.
    fn requests_for(&self, limit_usd: Option<f64>) -> Option<u32> {
        self.image().times_in(MicroUsd::from_usd(limit_usd?))
    }
}

/// An amount as text: with cents, or as many digits as it takes.
fn dollars(usd: f64) -> String {
    let cents = format!("{usd:.2}");
    let exact = format!("{usd:.6}");
    if exact.ends_with("0000") { cents } else { exact.trim_end_matches('0').to_owned() }
}

/// Payments of one job.
#[derive(Debug, Clone, Copy)]
struct Ledger {
    /// Requests of all attempts that were, or may have been, charged; reserved ones included.
    charged: u32,
    /// Requests of this attempt that are reserved and have not ended.
    pending: u32,
    /// Requests of this attempt that were reserved and have ended.
    ended: u64,
}

/// Pays for the requests of one attempt: from what the job may cost, and from the daily budget of all workers.
pub(crate) struct JobBudget {
    store: Store,
    metrics: Metrics,
    prices: Prices,
    lease: Lease,
    /// Cancelled as [`CancelReason::LeaseLost`] where a payment finds that the lease was lost.
    cancel: CancelToken,
    max_cost_usd: Option<f64>,
    ledger: watch::Sender<Ledger>,
}

impl JobBudget {
    /// The budget of an attempt; earlier attempts have been charged for `charged` requests.
    pub(crate) fn new(
        store: Store,
        metrics: Metrics,
        prices: Prices,
        lease: Lease,
        cancel: CancelToken,
        max_cost_usd: Option<f64>,
        charged: u32,
    ) -> Self {
        let ledger = watch::Sender::new(Ledger { charged, pending: 0, ended: 0 });
        Self { store, metrics, prices, lease, cancel, max_cost_usd, ledger }
    }

    /// The budget as one image sees it: its requests are counted in the image's row.
    pub(crate) fn for_image(self: &Arc<Self>, asset_id: Uuid) -> ImageBudget {
        ImageBudget { job: self.clone(), image: PaidImage { lease: self.lease, asset_id } }
    }

    /// Why this many images cannot be paid for, as far as is known before the first request. An unreadable balance is not a shortfall.
    pub(crate) async fn find_shortfall(&self, images: u32, client: &Client) -> Option<(JobFailureCode, String)> {
        let prices = self.prices;
        let cost = dollars(prices.cost(images));
        // Where earlier attempts were charged, each request is checked alone.
        let limit = self.max_cost_usd.filter(|_| self.ledger.borrow().charged == 0);
        if let Some(limit) = limit.filter(|limit| prices.requests_for(Some(*limit)).is_some_and(|paid| paid < images)) {
            let message = format!("images to make: {images}, for about USD {cost}; max_cost_usd is {}", dollars(limit));
            return Some((JobFailureCode::BudgetExceeded, message));
        }
        if !prices.check_balance {
            return None;
        }
        match self.cancel.token().run_until_cancelled(client.balance()).await? {
            Ok(Balance { credits, .. }) => {
                let left = credits * USD_PER_CREDIT;
                (left + 1e-9 < prices.cost(images)).then(|| {
                    let left = dollars(left);
                    let message = format!(
                        "images to make: {images}, for about USD {cost}; the account has {credits:.1} credits (USD {left})"
                    );
                    (JobFailureCode::InsufficientCredits, message)
                })
            }
            Err(error) => {
                warn!(error = error_chain(&error), "the account's credits are not known; the job goes on");
                None
            }
        }
    }

    /// Counts a request as charged, unless the job may not cost that much.
    fn open(&self) -> bool {
        let affordable = self.prices.requests_for(self.max_cost_usd);
        self.ledger.send_if_modified(|ledger| {
            let paid = affordable.is_none_or(|affordable| ledger.charged < affordable);
            ledger.charged += u32::from(paid);
            ledger.pending += u32::from(paid);
            paid
        })
    }

    /// A reserved request has ended, or was not paid for after all.
    fn close(&self, charged: bool, ended: bool) {
        self.ledger.send_modify(|ledger| {
            ledger.pending -= 1;
            ledger.charged -= u32::from(!charged);
            ledger.ended += u64::from(ended);
        });
    }
}

/// Pays for the requests of one image.
pub(crate) struct ImageBudget {
    job: Arc<JobBudget>,
    image: PaidImage,
}

impl ImageBudget {
    /// Tries to pay once. [`BudgetError::Exceeded`] is not final while other payments are pending.
    async fn pay(&self) -> Result<Reservation, BudgetError> {
        let JobBudget { store, prices, cancel, ledger, .. } = &*self.job;
        if !self.job.open() {
            let spent = dollars(prices.cost(ledger.borrow().charged));
            return Err(BudgetError::Exceeded(format!(
                "the job has cost USD {spent}, and one more request would go above its max_cost_usd"
            )));
        }
        let daily = prices.daily_usd.map(MicroUsd::from_usd);
        let error = match store.pay(self.image, prices.image(), daily).await {
            Ok(Payment::Paid(day)) => return Ok(Reservation(day)),
            Ok(Payment::OverBudget) => {
                let limit = dollars(prices.daily_usd.unwrap_or_default());
                BudgetError::Exceeded(format!(
                    "today's budget of all workers, WORKER_DAILY_BUDGET_USD={limit}, is used up"
                ))
            }
            Err(error) => {
                if matches!(error, StoreError::LeaseLost) {
                    cancel.cancel(CancelReason::LeaseLost);
                }
                BudgetError::Unavailable(Box::new(error))
            }
        };
        self.job.close(false, false);
        Err(error)
    }
}

#[async_trait]
impl Budget for ImageBudget {
    /// Where the money is used up, waits for the end of pending requests of the job: what they have reserved may be refunded.
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        loop {
            let mut changes = self.job.ledger.subscribe();
            let ended = changes.borrow().ended;
            let error = match self.pay().await {
                Err(error @ BudgetError::Exceeded(_)) => error,
                decided => return decided,
            };
            let changed = changes.wait_for(|ledger| ledger.ended != ended || ledger.pending == 0);
            match self.job.cancel.token().run_until_cancelled(changed).await {
                Some(Ok(ledger)) if ledger.ended != ended => {}
                Some(Ok(_) | Err(_)) | None => return Err(error),
            }
        }
    }

    async fn commit(&self, _reservation: Reservation) {
        self.job.metrics.spent(self.job.prices.image_usd);
        self.job.close(true, true);
    }

    async fn refund(&self, Reservation(day): Reservation) {
        if let Err(error) = self.job.store.take_back(self.image, self.job.prices.image(), &day).await {
            warn!(error = error_chain(&error), "refund failed; an uncharged request stays paid");
        }
        self.job.close(false, true);
    }
}
