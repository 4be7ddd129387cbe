//! Who pays for requests.

use async_trait::async_trait;

/// Why a request was not paid for; it was not sent.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// There is no money left for it.
    #[error("{0}")]
    Exceeded(String),
    /// It is not known whether there is money left, for this reason.
    #[error("the budget is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Names one reserved payment. Its contents are opaque to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation(pub String);

/// Pays for requests, one by one. Each reservation is followed by exactly one `commit` or `refund`, unless the call is dropped in between: such a
/// request may have been sent, so that its reservation must stay paid.
#[async_trait]
pub trait Budget: Send + Sync {
    /// Pays for one request, which is sent right after.
    ///
    /// # Errors
    ///
    /// [`BudgetError`]; then nothing is sent.
    async fn reserve(&self) -> Result<Reservation, BudgetError>;

    /// The request has ended and was, or may have been, charged.
    async fn commit(&self, reservation: Reservation);

    /// The request has ended and was certainly not charged.
    async fn refund(&self, reservation: Reservation);
}

/// A budget without a limit.
pub(crate) struct Unlimited;

#[async_trait]
impl Budget for Unlimited {
    async fn reserve(&self) -> Result<Reservation, BudgetError> {
        Ok(Reservation(String::new()))
    }

    async fn commit(&self, _reservation: Reservation) {}

    async fn refund(&self, _reservation: Reservation) {}
}
