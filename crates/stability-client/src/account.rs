//! What the API says of the account and its engines.

use serde::Deserialize;

/// The account's credits.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Balance {
    /// One credit is USD 0.01.
    pub credits: f64,
}

/// An engine that the account may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EngineListing {
    /// The name in requests.
    pub id: String,
    /// The name for people.
    pub name: String,
}
