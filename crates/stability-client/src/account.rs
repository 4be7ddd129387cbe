//! The account's credits and engines.

use serde::Deserialize;

/// The account's credit balance.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Balance {
    /// Remaining credits; one credit is USD 0.01.
    pub credits: f64,
}

/// An engine that the account may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EngineListing {
    /// Identifier in requests, as [`crate::Engine::id`].
    pub id: String,
    /// Display name.
    pub name: String,
}
