//! Budget of one job: its cost limit is checked before the first request, and again before each request.

use std::sync::Arc;

use async_trait::async_trait;
use domain::failure::JobFailureCode;
use domain::money::MicroUsd;
use stability_client::{Balance, Budget, BudgetError, Client, Reservation};
use store::{CostReservation, Lease, LeasedImage, Store, StoreError};
use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

use crate::cancel::{CancelReason, CancelToken};
use crate::error_chain::error_chain;
use crate::settings::Settings;
use crate::telemetry::Metrics;

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

    /// The price of one request.
    fn image_price(&self) -> MicroUsd {
        MicroUsd::from_usd(self.price_per_image_usd)
    }

    /// The cost of this many requests, in US dollars.
    pub(crate) fn cost_usd(&self, requests: u32) -> f64 {
        self.image_price().total_usd(requests)
    }

    /// The number of requests that `limit_usd` pays for; `None` if there is no limit.
    fn affordable_requests(&self, limit_usd: Option<f64>) -> Option<u32> {
        self.image_price().affordable_count(MicroUsd::from_usd(limit_usd?))
    }
}

/// Formats an amount in US dollars with two decimals, or with up to six if it needs more.
fn format_usd(usd: f64) -> String {
    let cents = format!("{usd:.2}");
    let exact = format!("{usd:.6}");
    if exact.ends_with("0000") { cents } else { exact.trim_end_matches('0').to_owned() }
}

/// Requests of one job, by state.
#[derive(Debug, Clone, Copy)]
struct RequestCounts {
    /// Requests of all attempts that were, or may have been, charged, including reserved ones.
    charged: u32,
    /// Requests of this attempt that are reserved and have not ended.
    pending: u32,
    /// Requests of this attempt that were reserved and have ended.
    ended: u64,
}

/// Counts and limits the cost of the requests of one attempt, within the job's `max_cost_usd` and the daily budget of all workers.
pub(crate) struct JobBudget {
    store: Store,
    metrics: Metrics,
    cost_policy: CostPolicy,
    lease: Lease,
    /// Cancelled with [`CancelReason::LeaseLost`] if a reservation finds that the lease was lost.
    cancel: CancelToken,
    max_cost_usd: Option<f64>,
    counts: watch::Sender<RequestCounts>,
}

impl JobBudget {
    /// Creates the budget of an attempt; `charged` is the number of requests charged in earlier attempts.
    pub(crate) fn new(
        store: Store,
        metrics: Metrics,
        cost_policy: CostPolicy,
        lease: Lease,
        cancel: CancelToken,
        max_cost_usd: Option<f64>,
        charged: u32,
    ) -> Self {
        let counts = watch::Sender::new(RequestCounts { charged, pending: 0, ended: 0 });
        Self { store, metrics, cost_policy, lease, cancel, max_cost_usd, counts }
    }

    /// The budget of one image, whose requests are counted in the image's row.
    pub(crate) fn for_image(self: &Arc<Self>, asset_id: Uuid) -> ImageBudget {
        ImageBudget { job: self.clone(), image: LeasedImage { lease: self.lease, asset_id } }
    }

    /// Returns why this many images cannot be paid for, as far as known before the first request.
    ///
    /// A balance that cannot be read is not a shortfall.
    pub(crate) async fn find_shortfall(&self, images: u32, client: &Client) -> Option<(JobFailureCode, String)> {
        let prices = self.cost_policy;
        let cost = format_usd(prices.cost_usd(images));
        // After charged attempts, `max_cost_usd` is checked only before each request.
        let limit = self.max_cost_usd.filter(|_| self.counts.borrow().charged == 0);
        if let Some(limit) =
            limit.filter(|limit| prices.affordable_requests(Some(*limit)).is_some_and(|reserved| reserved < images))
        {
            let message =
                format!("images to make: {images}, for about USD {cost}; max_cost_usd is {}", format_usd(limit));
            return Some((JobFailureCode::BudgetExceeded, message));
        }
        if !prices.check_balance {
            return None;
        }
        match self.cancel.token().run_until_cancelled(client.balance()).await? {
            Ok(Balance { credits, .. }) => {
                let remaining = credits * USD_PER_CREDIT;
                (remaining + 1e-9 < prices.cost_usd(images)).then(|| {
                    let remaining = format_usd(remaining);
                    let message = format!(
                        "images to make: {images}, for about USD {cost}; the account has {credits:.1} credits (USD {remaining})"
                    );
                    (JobFailureCode::InsufficientCredits, message)
                })
            }
            Err(error) => {
                warn!(error = error_chain(&error), "account balance could not be read; the job continues");
                None
            }
        }
    }

    /// Counts a request as charged and pending; returns `false` if the job's cost would exceed `max_cost_usd`.
    fn reserve_within_max_cost(&self) -> bool {
        let affordable = self.cost_policy.affordable_requests(self.max_cost_usd);
        self.counts.send_if_modified(|counts| {
            let reserved = affordable.is_none_or(|affordable| counts.charged < affordable);
            counts.charged += u32::from(reserved);
            counts.pending += u32::from(reserved);
            reserved
        })
    }

    /// Ends the reservation of a request that has `ended`, or that was not paid for after all.
    fn end_reservation(&self, charged: bool, ended: bool) {
        self.counts.send_modify(|counts| {
            counts.pending -= 1;
            counts.charged -= u32::from(!charged);
            counts.ended += u64::from(ended);
        });
    }
}

/// Reserves, commits and refunds the price of one image's requests.
pub(crate) struct ImageBudget {
    job: Arc<JobBudget>,
    image: LeasedImage,
}

impl ImageBudget {
    /// Tries to reserve once. [`BudgetError::Exceeded`] is not final while other requests of the job are pending.
    async fn reserve_once(&self) -> Result<Reservation, BudgetError> {
        let JobBudget { store, cost_policy: prices, cancel, counts, .. } = &*self.job;
        if !self.job.reserve_within_max_cost() {
            let spent = format_usd(prices.cost_usd(counts.borrow().charged));
            return Err(BudgetError::Exceeded(format!(
                "the job has cost USD {spent}; one more request would exceed its max_cost_usd"
            )));
        }
        let daily_budget = prices.daily_budget_usd.map(MicroUsd::from_usd);
        let error = match store.reserve_cost(self.image, prices.image_price(), daily_budget).await {
            Ok(CostReservation::Reserved(day)) => return Ok(Reservation(day)),
            Ok(CostReservation::OverBudget) => {
                let limit = format_usd(prices.daily_budget_usd.unwrap_or_default());
                BudgetError::Exceeded(format!(
                    "the daily budget of all workers, WORKER_DAILY_BUDGET_USD={limit}, is used up"
                ))
            }
            Err(error) => {
                if matches!(error, StoreError::LeaseLost) {
                    cancel.cancel(CancelReason::LeaseLost);
                }
                BudgetError::Unavailable(Box::new(error))
            }
        };
        self.job.end_reservation(false, false);
        Err(error)
    }
}

#[async_trait]
impl Budget for ImageBudget {
    /// If the budget is used up, waits for pending requests of the job to end: their reservations may be refunded.
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        loop {
            let mut changes = self.job.counts.subscribe();
            let ended = changes.borrow().ended;
            let error = match self.reserve_once().await {
                Err(error @ BudgetError::Exceeded(_)) => error,
                decided => return decided,
            };
            let changed = changes.wait_for(|counts| counts.ended != ended || counts.pending == 0);
            match self.job.cancel.token().run_until_cancelled(changed).await {
                Some(Ok(counts)) if counts.ended != ended => {}
                Some(Ok(_) | Err(_)) | None => return Err(error),
            }
        }
    }

    async fn commit(&self, _reservation: Reservation) {
        self.job.metrics.record_cost(self.job.cost_policy.price_per_image_usd);
        self.job.end_reservation(true, true);
    }

    async fn refund(&self, Reservation(day): Reservation) {
        if let Err(error) = self.job.store.refund(self.image, self.job.cost_policy.image_price(), &day).await {
            warn!(error = error_chain(&error), "refund failed; the uncharged request stays counted as charged");
        }
        self.job.end_reservation(false, true);
    }
}
