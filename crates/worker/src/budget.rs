//! Budget of one job: its cost limit is checked before the first request, and again before each request.

use std::sync::Arc;

use async_trait::async_trait;
use domain::failure::JobFailureCode;
use domain::job_over::JobOver;
use domain::money::MicroUsd;
use stability_client::{Balance, Budget, BudgetError, Client, Reservation};
use store::{CostReservation, Lease, LeasedImage, Payer, Probe, Store, StoreError};
use tokio::sync::watch;
use tracing::warn;
use uuid::Uuid;

use crate::cancel::{CancelReason, CancelToken};
use crate::cost_policy::{CostPolicy, RequestPrices, format_usd};
use crate::error_chain::error_chain;
use crate::gate::AccountGate;
use crate::outage::UnstoredImages;
use crate::telemetry::Metrics;

/// What a job has spent, and its requests by state.
#[derive(Debug, Clone, Copy)]
struct Spending {
    /// What requests of all attempts were, or may have been, charged, including reserved ones.
    charged: MicroUsd,
    /// Requests of this attempt that are reserved and have not ended.
    pending: u32,
    /// Requests of this attempt that were reserved and have ended.
    ended: u64,
}

/// Counts and limits the cost of the requests of one attempt, within the job's `max_cost_usd` and the daily budget of
/// all workers.
pub(crate) struct JobBudget {
    store: Store,
    gate: AccountGate,
    metrics: Metrics,
    unstored: UnstoredImages,
    cost_policy: CostPolicy,
    prices: RequestPrices,
    lease: Lease,
    /// Cancelled with [`CancelReason::LeaseLost`] or another reason if a reservation finds that nothing may be paid
    /// for.
    cancel: CancelToken,
    max_cost_usd: Option<f64>,
    /// The successful probe that lets the job pay although the key is refused.
    probe: Option<Probe>,
    spending: watch::Sender<Spending>,
}

impl JobBudget {
    /// Creates the budget of an attempt; `charged` is what earlier attempts were charged.
    #[expect(clippy::too_many_arguments, reason = "each is a different part of the attempt")]
    pub(crate) fn new(
        gate: AccountGate,
        metrics: Metrics,
        unstored: UnstoredImages,
        cost_policy: CostPolicy,
        prices: RequestPrices,
        lease: Lease,
        cancel: CancelToken,
        max_cost_usd: Option<f64>,
        probe: Option<Probe>,
        charged: MicroUsd,
    ) -> Self {
        let spending = watch::Sender::new(Spending { charged, pending: 0, ended: 0 });
        Self {
            store: gate.store().clone(),
            gate,
            metrics,
            unstored,
            cost_policy,
            prices,
            lease,
            cancel,
            max_cost_usd,
            probe,
            spending,
        }
    }

    /// The budget of the requests that generate an image. They are counted in the image's row.
    ///
    /// An image is only started if its limits also pay for its upscale.
    pub(crate) fn for_generation(self: &Arc<Self>, asset_id: Uuid) -> ImageBudget {
        let RequestPrices { generation, upscale } = self.prices;
        self.for_requests(asset_id, generation, upscale)
    }

    /// The budget of the requests that upscale an image. They are counted in the image's row.
    pub(crate) fn for_upscale(self: &Arc<Self>, asset_id: Uuid) -> UpscaleBudget {
        UpscaleBudget(self.for_requests(asset_id, self.prices.upscale, MicroUsd::default()))
    }

    fn for_requests(self: &Arc<Self>, asset_id: Uuid, price: MicroUsd, headroom: MicroUsd) -> ImageBudget {
        ImageBudget { job: self.clone(), image: LeasedImage { lease: self.lease, asset_id }, price, headroom }
    }

    /// Returns why this many images cannot be paid for, as far as known before the first request.
    ///
    /// A balance that cannot be read is not a shortfall.
    pub(crate) async fn find_shortfall(&self, images: u32, client: &Client) -> Option<(JobFailureCode, String)> {
        // After charged attempts, `max_cost_usd` is checked only before each request.
        let limit = self.max_cost_usd.filter(|_| self.spending.borrow().charged == MicroUsd::default());
        if let Some(excess) = limit.and_then(|limit| self.prices.find_max_cost_excess(images, limit)) {
            return Some(excess);
        }
        // An admitted job finds out whether paid requests are accepted; its shortfall must not count as an attempt.
        if !self.cost_policy.checks_balance() || self.probe.is_some() {
            return None;
        }
        match self.cancel.token().run_until_cancelled(client.balance()).await? {
            Ok(Balance { credits, .. }) => self.prices.find_credit_shortfall(images, credits),
            Err(error) => {
                warn!(error = error_chain(&error), "account balance could not be read; the job continues");
                None
            }
        }
    }

    /// What the job has cost so far, reserved requests included, in US dollars.
    pub(crate) fn cost_usd(&self) -> f64 {
        self.spending.borrow().charged.usd()
    }

    /// Counts a request of this price as charged and pending; returns `false` if the job's cost and the `headroom`
    /// would exceed `max_cost_usd`.
    fn reserve_within_max_cost(&self, price: MicroUsd, headroom: MicroUsd) -> bool {
        let limit = self.max_cost_usd.map(MicroUsd::from_usd);
        self.spending.send_if_modified(|spending| {
            let charged = spending.charged.plus(price);
            let reserved = limit.is_none_or(|limit| charged.plus(headroom) <= limit);
            if reserved {
                spending.charged = charged;
                spending.pending += 1;
                self.gate.begin_payment();
            }
            reserved
        })
    }

    /// Ends the reservation of a request that has `ended`, or that was not paid for after all.
    ///
    /// `refund` is its price if it was not charged.
    fn end_reservation(&self, refund: Option<MicroUsd>, ended: bool) {
        self.gate.end_payments(1);
        self.spending.send_modify(|spending| {
            spending.pending -= 1;
            spending.charged = MicroUsd(spending.charged.0 - refund.unwrap_or_default().0);
            spending.ended += u64::from(ended);
        });
    }
}

impl Drop for JobBudget {
    /// The requests of an aborted attempt end without a result.
    fn drop(&mut self) {
        self.gate.end_payments(self.spending.borrow().pending);
    }
}

/// Why a request was not reserved.
enum Refusal {
    /// The job's `max_cost_usd` would be exceeded; the text says so.
    MaxCost(String),
    /// The daily budget would be exceeded.
    DailyBudget,
    /// The account gate is closed.
    GateClosed,
    /// The job is cancelled or has expired.
    JobOver(JobOver),
    /// The database failed, or the lease was lost.
    Store(StoreError),
}

/// Reserves, commits and refunds the price of one image's requests.
pub(crate) struct ImageBudget {
    job: Arc<JobBudget>,
    image: LeasedImage,
    /// The price of one request.
    price: MicroUsd,
    /// What must remain of the limits after a request.
    headroom: MicroUsd,
}

impl ImageBudget {
    /// Tries to reserve once. Exceeded limits are not final while other requests of the job are pending.
    async fn reserve_once(&self) -> Result<Reservation, Refusal> {
        let JobBudget { store, cost_policy, .. } = &*self.job;
        let (price, headroom) = (self.price, self.headroom);
        if !self.job.reserve_within_max_cost(price, headroom) {
            let spent = format_usd(self.job.cost_usd());
            return Err(Refusal::MaxCost(format!(
                "the job has cost USD {spent}; one more request would exceed its max_cost_usd"
            )));
        }
        let key = self.job.gate.key();
        let payer = Payer { key: &key, probe: self.job.probe };
        let daily_limit = cost_policy.daily_budget().map(|limit| MicroUsd(limit.0 - headroom.0));
        let refusal = match store.reserve_cost(self.image, payer, price, daily_limit).await {
            Ok(CostReservation::Reserved(day)) => return Ok(Reservation(day)),
            Ok(CostReservation::GateClosed) => Refusal::GateClosed,
            Ok(CostReservation::JobOver(over)) => Refusal::JobOver(over),
            Ok(CostReservation::OverBudget) => Refusal::DailyBudget,
            Err(error) => Refusal::Store(error),
        };
        self.job.end_reservation(Some(price), false);
        Err(refusal)
    }

    /// Converts a final refusal into the client's error. A refusal that concerns other jobs too cancels the attempt,
    /// and the client reports the call as stopped.
    async fn give_up(&self, refusal: Refusal) -> BudgetError {
        let JobBudget { gate, cancel, .. } = &*self.job;
        let reason = match &refusal {
            Refusal::MaxCost(_) | Refusal::Store(StoreError::Database { .. }) => None,
            Refusal::Store(StoreError::LeaseLost) => Some(CancelReason::LeaseLost),
            Refusal::DailyBudget => Some(CancelReason::DailyBudget),
            Refusal::GateClosed => Some(CancelReason::GateClosed),
            Refusal::JobOver(over) => Some(CancelReason::JobOver(over.clone())),
        };
        if let Some(reason) = reason {
            cancel.cancel(reason);
        }
        match refusal {
            Refusal::MaxCost(message) => BudgetError::Exceeded(message),
            Refusal::Store(error) => BudgetError::Unavailable(Box::new(error)),
            Refusal::DailyBudget | Refusal::GateClosed => {
                gate.refresh().await;
                BudgetError::Unavailable("nothing may be paid for now".into())
            }
            Refusal::JobOver(_) => BudgetError::Unavailable("the job is over".into()),
        }
    }
}

#[async_trait]
impl Budget for ImageBudget {
    /// Waits while too many paid images are not stored. If the budget is used up, waits for pending requests of the job
    /// to end: their reservations may be refunded.
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        let JobBudget { unstored, cancel, .. } = &*self.job;
        if cancel.token().run_until_cancelled(unstored.wait_for_room()).await.is_none() {
            return Err(BudgetError::Unavailable("the attempt was cancelled".into()));
        }
        loop {
            let mut changes = self.job.spending.subscribe();
            let ended = changes.borrow().ended;
            let refusal = match self.reserve_once().await {
                Ok(reservation) => return Ok(reservation),
                Err(refusal @ (Refusal::MaxCost(_) | Refusal::DailyBudget)) => refusal,
                Err(refusal) => return Err(self.give_up(refusal).await),
            };
            let has_changed = {
                let changed = changes.wait_for(|spending| spending.ended != ended || spending.pending == 0);
                let waited = self.job.cancel.token().run_until_cancelled(changed).await;
                matches!(waited, Some(Ok(spending)) if spending.ended != ended)
            };
            if !has_changed {
                return Err(self.give_up(refusal).await);
            }
        }
    }

    async fn commit(&self, _reservation: Reservation) {
        self.job.metrics.record_cost(self.price.usd());
        self.job.end_reservation(None, true);
    }

    async fn refund(&self, Reservation(day): Reservation) {
        if let Err(error) = self.job.store.refund(self.image, self.price, &day).await {
            warn!(error = error_chain(&error), "refund failed; the uncharged request stays counted as charged");
        }
        self.job.end_reservation(Some(self.price), true);
    }
}

/// Reserves, commits and refunds the price of one image's upscale. A refusal is final for this image only, which is
/// stored already, and neither waits nor cancels the attempt.
pub(crate) struct UpscaleBudget(ImageBudget);

#[async_trait]
impl Budget for UpscaleBudget {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        let refusal = match self.0.reserve_once().await {
            Ok(reservation) => return Ok(reservation),
            Err(refusal) => refusal,
        };
        Err(match refusal {
            Refusal::MaxCost(message) => BudgetError::Exceeded(message),
            Refusal::DailyBudget => BudgetError::Exceeded("the daily budget would be exceeded".to_owned()),
            Refusal::GateClosed => BudgetError::Exceeded("the account gate is closed".to_owned()),
            Refusal::JobOver(_) => BudgetError::Exceeded("the job is over".to_owned()),
            Refusal::Store(StoreError::LeaseLost) => self.0.give_up(Refusal::Store(StoreError::LeaseLost)).await,
            Refusal::Store(error) => BudgetError::Unavailable(Box::new(error)),
        })
    }

    async fn commit(&self, reservation: Reservation) {
        self.0.commit(reservation).await;
    }

    async fn refund(&self, reservation: Reservation) {
        self.0.refund(reservation).await;
    }
}
