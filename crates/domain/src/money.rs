//! Amounts of money in US dollars.

/// An amount in millionths of a US dollar, so that sums are exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MicroUsd(pub i64);

impl MicroUsd {
    /// Converts from US dollars, 0 to 1,000,000, rounded to the nearest millionth.
    #[expect(clippy::cast_possible_truncation, reason = "settings and commands limit the value")]
    pub fn from_usd(usd: f64) -> Self {
        Self((usd * 1e6).round() as i64)
    }

    /// `count` times this amount, in US dollars.
    pub fn total_usd(self, count: u32) -> f64 {
        Self(self.0.saturating_mul(i64::from(count))).usd()
    }

    /// The sum of both amounts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// This amount in US dollars.
    #[expect(clippy::cast_precision_loss, reason = "amounts are far below 2^53 millionths")]
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// How many items at this price a budget can pay for; `None` if the price is 0.
    pub fn affordable_count(self, amount: Self) -> Option<u32> {
        let times = amount.0.checked_div(self.0)?;
        Some(u32::try_from(times).unwrap_or(u32::MAX))
    }
}
