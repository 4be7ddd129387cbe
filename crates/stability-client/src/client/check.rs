//! Whether the account is ready to work.

use super::Client;
use crate::engine::{Engine, Family};
use crate::error::Error;

/// What [`Client::check`] found: the API was reached, and the key is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checked {
    /// The account's credits; one is USD 0.01.
    pub credits: f64,
    /// Whether the account may use the engine; `None` for the v2beta engines, which the API does not list.
    pub engine_listed: Option<bool>,
}

impl Checked {
    /// Whether a picture can be asked for.
    pub fn is_ready(&self) -> bool {
        self.credits > 0.0 && self.engine_listed != Some(false)
    }
}

impl Client {
    /// Checks, without cost: the API can be reached, it accepts the key, it knows the engine, and credits are left.
    ///
    /// # Errors
    ///
    /// [`Error`] where the API cannot be reached or does not accept the key; nothing is retried.
    pub async fn check(&self, engine: Engine) -> Result<Checked, Error> {
        let credits = self.balance().await?.credits;
        let engine_listed = match engine.family() {
            Family::V1 => Some(self.engines().await?.iter().any(|listing| listing.id == engine.id())),
            Family::V2Beta => None,
        };
        Ok(Checked { credits, engine_listed })
    }
}
