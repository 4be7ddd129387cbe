//! The account gate: while it is closed, the worker takes no commands and pays for nothing, so that the backlog waits.
//!
//! A pause and the refusal of an API key are stored in the database and shared by the workers that they concern.
//! Whether the daily budget is used up follows from the day's spending and this worker's own limit. This module decides
//! what a closed gate means for this worker:
//!
//! | reason | commands taken | attempts in hand |
//! | --- | --- | --- |
//! | none | all | continue |
//! | `daily_budget`, while a cost may be refunded | none | continue |
//! | `daily_budget` | none | continue until they need a payment |
//! | `paused` | none | start no further image |
//! | `unauthorized`, `insufficient_credits` | none | start no further image |
//! | the same, after this worker's probe succeeded | one at a time, until one has paid | only the one that was taken continues |

mod reason;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use domain::failure::JobFailureCode;
use stability_client::Client;
use store::{KeyHash, Probe, Store, StoreError};
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;

use crate::api_key::StabilityKey;
use crate::cost_policy::{CostPolicy, is_covered_by};
use crate::error_chain::error_chain;
use crate::failpoint;
use crate::outage::retry_store;
pub(crate) use reason::{GateReason, read_reasons};

/// The interval at which the stored state is read: a change is noticed within five seconds.
const POLL_INTERVAL: Duration = Duration::from_secs(4);

/// Which commands are taken from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// As many as the worker can run.
    All,
    /// One at a time: after this successful probe, one job may pay although the API refused the key.
    One(Probe),
    /// None.
    Closed,
}

/// The stored state as last read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct GateState {
    /// Why the gate is closed; empty if it is open.
    reasons: Vec<GateReason>,
    /// The daily budget is used up, but costs of requests in flight may still be refunded.
    budget_may_be_refunded: bool,
    /// The latest probe of the key, by any worker.
    latest_probe: Option<Probe>,
    /// This worker's probe, if it succeeded, is the latest one, and no job has paid after it.
    own_probe: Option<Probe>,
}

impl GateState {
    fn intake(&self) -> Intake {
        match (self.reasons.as_slice(), self.own_probe) {
            _ if self.budget_may_be_refunded => Intake::Closed,
            ([], _) => Intake::All,
            ([GateReason::Refused(_)], Some(probe)) => Intake::One(probe),
            _ => Intake::Closed,
        }
    }

    /// Whether an attempt that started after this probe, or while the gate was open, starts no further image.
    fn interrupts(&self, probe: Option<Probe>) -> bool {
        self.reasons.iter().any(|reason| match reason {
            GateReason::Paused(_) => true,
            GateReason::Refused(_) => probe.is_none() || probe != self.latest_probe,
            // An attempt that exceeds the daily budget finds this when it reserves a cost.
            GateReason::DailyBudget { .. } => false,
        })
    }

    fn is_refused(&self) -> bool {
        self.reasons.iter().any(|reason| matches!(reason, GateReason::Refused(_)))
    }
}

/// The gate as this worker knows it. Clones share the state.
#[derive(Clone)]
pub(crate) struct AccountGate {
    store: Store,
    client: Client,
    key: StabilityKey,
    cost_policy: CostPolicy,
    /// Reserved requests of this process whose costs may still be refunded.
    pending_payments: Arc<AtomicUsize>,
    state: Arc<watch::Sender<GateState>>,
    /// This worker's last successful probe, and the key that it probed. Held while the state is read, so that an older
    /// state never replaces a newer one.
    own_probe: Arc<Mutex<Option<(KeyHash, Probe)>>>,
}

impl AccountGate {
    /// Creates the gate of the API key that `client` uses; it is open until it is read.
    pub(crate) fn new(store: Store, client: Client, key: StabilityKey, cost_policy: CostPolicy) -> Self {
        let (pending_payments, own_probe) = (Arc::default(), Arc::default());
        Self { store, client, key, cost_policy, pending_payments, state: Arc::new(watch::Sender::default()), own_probe }
    }

    /// Counts a reserved request: while there is one, the daily budget does not close the gate.
    pub(crate) fn begin_payment(&self) {
        self.pending_payments.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the count of this many reserved requests.
    pub(crate) fn end_payments(&self, count: u32) {
        self.pending_payments.fetch_sub(count as usize, Ordering::Relaxed);
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The hash of the API key in use.
    pub(crate) fn key(&self) -> KeyHash {
        self.key.hash()
    }

    /// Whether another API key than this one is in use, or has been put into the key's file.
    pub(crate) async fn is_replaced(&self, key: &KeyHash) -> bool {
        self.key.reload().await;
        self.key.hash() != *key
    }

    /// Why the gate is closed, as last read; empty if it is open.
    pub(crate) fn reasons(&self) -> Vec<GateReason> {
        self.state.borrow().reasons.clone()
    }

    /// Reads the stored state and returns which commands are taken. If it cannot be read, the last state is kept.
    pub(crate) async fn refresh(&self) -> Intake {
        let own_probe = self.own_probe.lock().await;
        self.key.reload().await;
        let pending_before = self.pending_payments.load(Ordering::Relaxed);
        match self.read(own_probe.as_ref(), pending_before > 0).await {
            Ok(read) => {
                self.state.send_if_modified(|state| {
                    let changed = *state != read;
                    if state.reasons != read.reasons {
                        log_change(&state.reasons, &read.reasons);
                    }
                    *state = read;
                    changed
                });
            }
            Err(error) => warn!(error = error_chain(&error), "account gate could not be read; its last state is kept"),
        }
        self.state.borrow().intake()
    }

    async fn read(&self, own_probe: Option<&(KeyHash, Probe)>, was_pending: bool) -> Result<GateState, StoreError> {
        let key = self.key.hash();
        let own_probe = own_probe.filter(|(probed, _)| *probed == key).map(|(_, probe)| *probe);
        let status = self.store.read_key(&key).await?;
        let (latest_probe, is_probing) =
            status.as_ref().map_or((None, false), |status| (Some(status.probe), status.is_probing));
        let refusal = status.and_then(|status| status.refusal);
        let mut reasons = reason::read_reasons_except_refusal(&self.store, self.cost_policy).await?;
        // A cost that was refunded during the read may still have been counted.
        let pending = was_pending || self.pending_payments.load(Ordering::Relaxed) > 0;
        let count = reasons.len();
        if pending {
            reasons.retain(|reason| !matches!(reason, GateReason::DailyBudget { .. }));
        }
        let budget_may_be_refunded = reasons.len() < count;
        reasons.extend(refusal.map(GateReason::Refused));
        let own_probe = own_probe.filter(|own| is_probing && Some(*own) == latest_probe);
        Ok(GateState { reasons, budget_may_be_refunded, latest_probe, own_probe })
    }

    /// Reads the stored state periodically; never returns.
    pub(crate) async fn poll(&self) -> Infallible {
        loop {
            self.refresh().await;
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Probes a refused account when a probe is due, while `can_take_commands` is true; never returns.
    pub(crate) async fn poll_probes(&self, can_take_commands: &AtomicBool) -> Infallible {
        loop {
            sleep(POLL_INTERVAL).await;
            if can_take_commands.load(Ordering::Relaxed) {
                self.probe(true).await;
            }
        }
    }

    /// Asks the API for the account's credits if only a refusal closes the gate. If they cover an image, one job of
    /// this worker may pay. With `when_due`, only if the next probe is due.
    pub(crate) async fn probe(&self, when_due: bool) {
        let only_refused = matches!(self.state.borrow().reasons.as_slice(), [GateReason::Refused(_)]);
        if !only_refused {
            return;
        }
        // A request during a rate-limit pause might prolong it.
        if !matches!(self.store.read_remaining_pause().await, Ok(Duration::ZERO)) {
            return;
        }
        let key = self.key.hash();
        let probe = match self.store.begin_probe(&key, when_due).await {
            Ok(Some(probe)) => probe,
            Ok(None) => return,
            Err(error) => return warn!(error = error_chain(&error), "account could not be probed"),
        };
        match self.client.balance().await {
            Ok(balance) if is_covered_by(self.cost_policy.default_image_price().usd(), balance.credits) => {
                info!(credits = balance.credits, "account probe succeeded; one job may pay");
                *self.own_probe.lock().await = Some((key, probe));
                self.refresh().await;
            }
            Ok(balance) => info!(credits = balance.credits, "account probe: the credits do not cover an image"),
            Err(error) => info!(error = error_chain(&error), "account probe failed"),
        }
    }

    /// Records that the API refused a paid request of a job because of this key or the credits. Returns whether this
    /// refusal closed the gate.
    pub(crate) async fn record_refusal(
        &self,
        key: &KeyHash,
        job_id: Uuid,
        code: JobFailureCode,
        message: &str,
    ) -> Result<bool, StoreError> {
        failpoint::reach("before_gate_closes").await;
        let closed = retry_store(|| self.store.refuse_key(key, job_id, code, message)).await?;
        self.refresh().await;
        Ok(closed)
    }

    /// Records that a paid request of a job succeeded: the success of the admitted job opens the gate.
    pub(crate) async fn record_success(&self, job_id: Uuid) {
        if !self.state.borrow().is_refused() {
            return;
        }
        if let Err(error) = self.store.accept_key(&self.key.hash(), job_id).await {
            warn!(error = error_chain(&error), "account gate could not be opened; the next success opens it");
        }
        self.refresh().await;
    }

    /// Completes once the gate is open. Cancel safe.
    pub(crate) async fn wait_until_open(&self) {
        let _ = self.state.subscribe().wait_for(|state| state.reasons.is_empty()).await;
    }

    /// Waits until other commands are taken than `current`; returns which. Cancel safe.
    pub(crate) async fn wait_for_other_intake(&self, current: Intake) -> Intake {
        // The sender lives as long as `self`.
        let mut states = self.state.subscribe();
        let changed = states.wait_for(|state| state.intake() != current).await;
        changed.map_or(current, |state| state.intake())
    }

    /// Completes once an attempt that started after this probe, or while the gate was open, is to start no further
    /// image. Cancel safe.
    pub(crate) async fn wait_until_interrupted(&self, probe: Option<Probe>) {
        let _ = self.state.subscribe().wait_for(|state| state.interrupts(probe)).await;
    }
}

fn log_change(before: &[GateReason], after: &[GateReason]) {
    let text = |reasons: &[GateReason]| reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if after.is_empty() {
        info!(was = text(before), "account gate opened; commands are consumed again");
    } else if before.is_empty() {
        warn!(reason = text(after), "account gate closed; commands stay on the queue, and nothing is paid for");
    } else {
        info!(reason = text(after), "account gate stays closed for another reason");
    }
}
