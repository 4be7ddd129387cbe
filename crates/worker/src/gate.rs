//! The account gate: while it is closed, the worker takes no commands and pays for nothing, so that the backlog waits.
//!
//! The state is stored in the database and shared by all workers. The only place that decides what a closed gate means
//! for this worker.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use domain::money::MicroUsd;
use serde::{Serialize, Serializer};
use store::{Pause, Store, StoreError};
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
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

/// The gate as this worker knows it. Clones share the state.
#[derive(Clone)]
pub(crate) struct AccountGate {
    store: Store,
    cost_policy: CostPolicy,
    /// Reserved requests of this process whose costs may still be refunded.
    pending_payments: Arc<AtomicUsize>,
    reasons: Arc<watch::Sender<Vec<GateReason>>>,
}

impl AccountGate {
    /// Creates a gate that is open until it is read.
    pub(crate) fn new(store: Store, cost_policy: CostPolicy) -> Self {
        Self { store, cost_policy, pending_payments: Arc::default(), reasons: Arc::new(watch::Sender::default()) }
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
        self.reasons.borrow().clone()
    }

    /// Reads the stored state and returns whether the gate is open. If it cannot be read, the last state is kept.
    pub(crate) async fn refresh(&self) -> bool {
        match read_reasons(&self.store, self.cost_policy).await {
            Ok(mut read) => {
                if self.pending_payments.load(Ordering::Relaxed) > 0 {
                    read.retain(|reason| !matches!(reason, GateReason::DailyBudget { .. }));
                }
                self.reasons.send_if_modified(|reasons| {
                    let changed = *reasons != read;
                    if changed {
                        log_change(reasons, &read);
                        *reasons = read;
                    }
                    changed
                });
            }
            Err(error) => warn!(error = error_chain(&error), "account gate could not be read; its last state is kept"),
        }
        self.reasons.borrow().is_empty()
    }

    /// Reads the stored state periodically; never returns.
    pub(crate) async fn poll(&self) -> Infallible {
        loop {
            self.refresh().await;
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Completes once the gate is open, or closed if `open` is false. Cancel safe.
    pub(crate) async fn wait_until(&self, open: bool) {
        // The sender lives as long as `self`.
        let _ = self.reasons.subscribe().wait_for(|reasons| reasons.is_empty() == open).await;
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
