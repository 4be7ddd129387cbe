//! The terms on which one picture is asked for: what ends the asking, and who pays.

use std::fmt;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::turns::Party;

/// Why a request may not be paid for; it was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// There is no money left for it.
    #[error("{0}")]
    Exceeded(String),
    /// It cannot be known whether there is.
    #[error("the budget cannot be asked: {0}")]
    Unavailable(String),
}

/// What a budget gave out, to be shown again when the request has had its end. What it says is the budget's own business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt(pub String);

/// Pays for requests, one by one.
#[async_trait]
pub trait Budget: Send + Sync {
    /// Pays for one request, which is sent right after. A request whose answer never comes stays paid.
    ///
    /// # Errors
    ///
    /// [`BudgetError`]; then nothing is sent.
    async fn charge(&self) -> Result<Receipt, BudgetError>;

    /// Hears of the end of a request that was paid for. Where it was surely not `charged`, what was paid can be taken back.
    async fn settle(&self, receipt: Receipt, charged: bool);
}

/// Nobody counts.
struct Unlimited;

#[async_trait]
impl Budget for Unlimited {
    async fn charge(&self) -> Result<Receipt, BudgetError> {
        Ok(Receipt(String::new()))
    }

    async fn settle(&self, _receipt: Receipt, _charged: bool) {}
}

/// The terms of one call.
#[derive(Clone)]
pub struct Terms<'a> {
    /// Once cancelled, no further request is sent, and no wait for a turn, the quota or a retry goes on. A request in flight comes to its
    /// end, since it may be paid already.
    pub stop: CancellationToken,
    /// Who pays.
    pub budget: &'a dyn Budget,
    /// Retries that an earlier call for the same picture has used up.
    pub retries_used: usize,
    /// Who asks, where several parties share a client.
    pub party: Party,
}

impl Default for Terms<'_> {
    /// Nothing stops it, nobody counts, no retry is used up, and it is of the party of all that name none.
    fn default() -> Self {
        Self { stop: CancellationToken::new(), budget: &Unlimited, retries_used: 0, party: Party::default() }
    }
}

impl fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stop, budget: _, retries_used, party } = self;
        let mut shown = f.debug_struct("Terms");
        shown.field("stop", stop).field("retries_used", retries_used).field("party", party).finish_non_exhaustive()
    }
}
