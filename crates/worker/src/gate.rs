//! The account gate: while it is closed, the worker takes no commands and pays for nothing, so that the backlog waits.
//!
//! A pause is stored in the database and shared by all workers. Whether the daily budget is used up follows from the
//! day's spending and this worker's own limit. This module decides whether the gate is closed, and why.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use domain::money::MicroUsd;
use serde::{Serialize, Serializer};
use store::{Pause, Store, StoreError};
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::cost_policy::{CostPolicy, format_usd};
use crate::error_chain::error_chain;

/// The interval at which the stored state is read: a change is noticed within five seconds.
const POLL_INTERVAL: Duration = Duration::from_secs(4);

/// Why the gate is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GateReason {
    /// An operator has paused the workers.
    Paused(Pause),
    /// This worker's daily budget does not cover another image on this day (UTC).
    DailyBudget {
        /// `WORKER_DAILY_BUDGET_USD`.
        limit: MicroUsd,
    },
}

impl GateReason {
    /// Values of the metric attribute `reason`.
    pub(crate) const NAMES: [&str; 2] = ["paused", "daily_budget"];

    /// The value of the metric attribute `reason`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Paused(_) => "paused",
            Self::DailyBudget { .. } => "daily_budget",
        }
    }
}

impl fmt::Display for GateReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(Pause { since, reason }) => {
                let since = since.format(&Rfc3339).unwrap_or_default();
                write!(formatter, "paused since {since}")?;
                reason.iter().try_for_each(|reason| write!(formatter, ": {reason}"))
            }
            Self::DailyBudget { limit } => {
                let limit = format_usd(limit.usd());
                write!(formatter, "the daily budget, WORKER_DAILY_BUDGET_USD={limit}, is used up until 00:00 UTC")
            }
        }
    }
}

impl Serialize for GateReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads why the gate is closed; empty if it is open.
///
/// # Errors
///
/// [`StoreError`] if the stored state cannot be read.
pub(crate) async fn read_reasons(store: &Store, cost_policy: CostPolicy) -> Result<Vec<GateReason>, StoreError> {
    let paused = store.read_pause().await?.map(GateReason::Paused);
    let spent_up = match cost_policy.daily_budget() {
        Some(limit) if store.read_spent_today().await?.0 + cost_policy.image_price().0 > limit.0 => {
            Some(GateReason::DailyBudget { limit })
        }
        _ => None,
    };
    Ok(paused.into_iter().chain(spent_up).collect())
}

/// The stored state as last read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct GateState {
    /// Why the gate is closed; empty if it is open.
    reasons: Vec<GateReason>,
    /// The daily budget is used up, but costs of requests in flight may still be refunded.
    budget_may_be_refunded: bool,
}

impl GateState {
    fn takes_commands(&self) -> bool {
        self.reasons.is_empty() && !self.budget_may_be_refunded
    }

    fn is_paused(&self) -> bool {
        self.reasons.iter().any(|reason| matches!(reason, GateReason::Paused(_)))
    }
}

/// The gate as this worker knows it. Clones share the state.
#[derive(Clone)]
pub(crate) struct AccountGate {
    store: Store,
    cost_policy: CostPolicy,
    /// Reserved requests of this process whose costs may still be refunded.
    pending_payments: Arc<AtomicUsize>,
    state: Arc<watch::Sender<GateState>>,
    /// Held while the state is read, so that an older state never replaces a newer one.
    reading: Arc<Mutex<()>>,
}

impl AccountGate {
    /// Creates a gate that is open until it is read.
    pub(crate) fn new(store: Store, cost_policy: CostPolicy) -> Self {
        let (pending_payments, reading) = (Arc::default(), Arc::default());
        Self { store, cost_policy, pending_payments, state: Arc::new(watch::Sender::default()), reading }
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

    /// Why the gate is closed, as last read; empty if it is open.
    pub(crate) fn reasons(&self) -> Vec<GateReason> {
        self.state.borrow().reasons.clone()
    }

    /// Reads the stored state and returns whether commands are taken. If it cannot be read, the last state is kept.
    pub(crate) async fn refresh(&self) -> bool {
        let _reading = self.reading.lock().await;
        let pending_before = self.pending_payments.load(Ordering::Relaxed);
        match read_reasons(&self.store, self.cost_policy).await {
            Ok(mut reasons) => {
                // A cost that was refunded during the read may still have been counted.
                let pending = pending_before > 0 || self.pending_payments.load(Ordering::Relaxed) > 0;
                let count = reasons.len();
                if pending {
                    reasons.retain(|reason| !matches!(reason, GateReason::DailyBudget { .. }));
                }
                let read = GateState { budget_may_be_refunded: reasons.len() < count, reasons };
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
        self.state.borrow().takes_commands()
    }

    /// Reads the stored state periodically; never returns.
    pub(crate) async fn poll(&self) -> Infallible {
        loop {
            self.refresh().await;
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Completes once commands are taken, or not taken if `taken` is false. Cancel safe.
    pub(crate) async fn wait_until_commands(&self, taken: bool) {
        // The sender lives as long as `self`.
        let _ = self.state.subscribe().wait_for(|state| state.takes_commands() == taken).await;
    }

    /// Completes once an operator has paused the workers. Cancel safe.
    pub(crate) async fn wait_until_paused(&self) {
        let _ = self.state.subscribe().wait_for(GateState::is_paused).await;
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
