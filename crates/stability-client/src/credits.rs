//! Credits: the unit in which Stability charges.

use std::fmt;
use std::ops::{Add, Mul};

/// An amount of account credits, exact to a tenth. One credit costs USD 0.01.
///
/// ```
/// use stability_client::{Engine, FastUpscale};
///
/// let image = Engine::Ultra.price().unwrap_or_default() + FastUpscale::PRICE;
/// assert_eq!((image * 3).usd(), 0.3);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credits {
    tenths: u32,
}

impl Credits {
    /// The price of one credit in US dollars. Source: Stability's pricing page.
    pub const USD: f64 = 0.01;

    pub(crate) const fn from_tenths(tenths: u32) -> Self {
        Self { tenths }
    }

    /// Returns the number of credits.
    pub fn as_f64(self) -> f64 {
        f64::from(self.tenths) / 10.0
    }

    /// Returns what the credits cost, in US dollars.
    pub fn usd(self) -> f64 {
        f64::from(self.tenths) / 1_000.0
    }
}

impl Add for Credits {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { tenths: self.tenths.saturating_add(other.tenths) }
    }
}

impl Mul<u32> for Credits {
    type Output = Self;

    fn mul(self, count: u32) -> Self {
        Self { tenths: self.tenths.saturating_mul(count) }
    }
}

impl fmt::Display for Credits {
    /// The number with as many decimals as it needs, such as `2` and `6.5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_f64().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_exact_in_dollars() {
        let price = Credits::from_tenths(65);
        assert_eq!((price.to_string(), price.usd().to_string()), ("6.5".to_owned(), "0.065".to_owned()));
        assert_eq!(Credits::from_tenths(20).to_string(), "2");
        assert!((price.as_f64() * Credits::USD - price.usd()).abs() < 1e-12);
    }
}
