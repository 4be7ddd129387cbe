//! The account's credits and engines.

use serde::{Deserialize, Serialize};

/// The account's credit balance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Balance {
    /// Remaining credits; one credit is USD 0.01.
    pub credits: f64,
}

/// An engine that the account may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EngineListing {
    /// Identifier in requests, as [`crate::Engine::id`].
    pub id: String,
    /// Display name.
    pub name: String,
}
