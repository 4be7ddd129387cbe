//! Why the account gate is closed.

use std::fmt;

use domain::failure::JobFailureCode;
use domain::money::MicroUsd;
use serde::{Serialize, Serializer};
use store::{KeyHash, Pause, Refusal, Store, StoreError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cost_policy::{CostPolicy, format_usd};

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
    /// The API refused a paid request with this worker's key.
    Refused(Refusal),
}

impl GateReason {
    /// Values of the metric attribute `reason`.
    pub(crate) const NAMES: [&str; 4] = ["paused", "daily_budget", "unauthorized", "insufficient_credits"];

    /// The value of the metric attribute `reason`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Paused(_) => "paused",
            Self::DailyBudget { .. } => "daily_budget",
            Self::Refused(refusal) => refusal.code.as_str(),
        }
    }
}

impl fmt::Display for GateReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |since: &OffsetDateTime| since.format(&Rfc3339).unwrap_or_default();
        match self {
            Self::Paused(Pause { since, reason }) => {
                write!(formatter, "paused since {}", time(since))?;
                reason.iter().try_for_each(|reason| write!(formatter, ": {reason}"))
            }
            Self::DailyBudget { limit } => {
                let limit = format_usd(limit.usd());
                write!(formatter, "the daily budget, WORKER_DAILY_BUDGET_USD={limit}, is used up until 00:00 UTC")
            }
            Self::Refused(Refusal { code, detail, since }) => {
                let cause = match code {
                    JobFailureCode::InsufficientCredits => "the account lacks credits",
                    _ => "the API refuses the key",
                };
                write!(formatter, "{cause} since {}: {detail}", time(since))
            }
        }
    }
}

impl Serialize for GateReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads why the gate is closed for an API key, or for any key that workers use; empty if it is open.
///
/// # Errors
///
/// [`StoreError`] if the stored state cannot be read.
pub(crate) async fn read_reasons(
    store: &Store,
    cost_policy: CostPolicy,
    key: Option<&KeyHash>,
) -> Result<Vec<GateReason>, StoreError> {
    let refusal = match key {
        Some(key) => store.read_key(key).await?.and_then(|status| status.refusal),
        None => store.read_latest_refusal().await?,
    };
    let mut reasons = read_reasons_except_refusal(store, cost_policy).await?;
    reasons.extend(refusal.map(GateReason::Refused));
    Ok(reasons)
}

/// Reads whether the workers are paused or the daily budget is used up.
///
/// # Errors
///
/// [`StoreError`] if the stored state cannot be read.
pub(super) async fn read_reasons_except_refusal(
    store: &Store,
    cost_policy: CostPolicy,
) -> Result<Vec<GateReason>, StoreError> {
    let paused = store.read_pause().await?.map(GateReason::Paused);
    let spent_up = match cost_policy.daily_budget() {
        Some(limit) if store.read_spent_today().await?.0 + cost_policy.default_image_price().0 > limit.0 => {
            Some(GateReason::DailyBudget { limit })
        }
        _ => None,
    };
    Ok(paused.into_iter().chain(spent_up).collect())
}
