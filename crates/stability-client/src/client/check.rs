//! A check of the account that costs nothing.

use serde::{Deserialize, Serialize};

use super::Client;
use crate::engine::{ApiVersion, Engine};
use crate::error::Error;

/// Result of [`Client::check`]: the API was reached and accepted the API key.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AccountStatus {
    /// The account's credits; one credit is USD 0.01.
    pub credits: f64,
    /// Whether the account may use the engine; `None` for v2beta engines, which the API does not list.
    pub engine_listed: Option<bool>,
}

impl AccountStatus {
    /// Whether images can be generated: credits are left, and the engine is available as far as the API lists it.
    pub fn is_ready(&self) -> bool {
        self.credits > 0.0 && self.engine_listed != Some(false)
    }
}

impl Client {
    /// Checks the API key, the remaining credits and whether the account may use the engine. Free of charge.
    ///
    /// # Errors
    ///
    /// [`Error`] if the API cannot be reached or rejects the API key; requests are not retried.
    pub async fn check(&self, engine: Engine) -> Result<AccountStatus, Error> {
        let credits = self.balance().await?.credits;
        let engine_listed = match engine.api_version() {
            ApiVersion::V1 => Some(self.engines().await?.iter().any(|listing| listing.id == engine.id())),
            ApiVersion::V2Beta => None,
        };
        Ok(AccountStatus { credits, engine_listed })
    }
}
