//! Budgets: reserve the price of a request before it is sent, then commit or refund it.

use async_trait::async_trait;

/// A request could not be reserved in the budget and was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// The budget has not enough left for the request; the text says why.
    #[error("{0}")]
    Exceeded(String),
    /// The budget could not be consulted, for example because its storage cannot be reached.
    #[error("the budget is unavailable: {0}")]
    Unavailable(Box<dyn std::error::Error + Send + Sync>),
}

/// Identifier of one reservation; opaque to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation(pub String);

/// Reserves, commits and refunds the prices of requests, one request at a time.
///
/// Each reservation is followed by exactly one [`commit`](Self::commit) or [`refund`](Self::refund), unless the call is
/// dropped in between. The request of a dropped call may have been sent and charged, so its reservation must count as
/// spent.
#[async_trait]
pub trait Budget: Send + Sync {
    /// Reserves the price of one request, which is sent immediately afterwards.
    ///
    /// # Errors
    ///
    /// [`BudgetError`] if the price cannot be reserved; the request is then not sent.
    async fn reserve(&self) -> Result<Reservation, BudgetError>;

    /// Commits the reservation of a request that has ended and was, or may have been, charged.
    async fn commit(&self, reservation: Reservation);

    /// Refunds the reservation of a request that has ended and was certainly not charged.
    async fn refund(&self, reservation: Reservation);
}

pub(crate) struct UnlimitedBudget;

#[async_trait]
impl Budget for UnlimitedBudget {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        Ok(Reservation(String::new()))
    }

    async fn commit(&self, _reservation: Reservation) {}

    async fn refund(&self, _reservation: Reservation) {}
}
