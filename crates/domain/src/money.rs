//! Amounts of money.

/// Millionths of a US dollar, so that sums are exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MicroUsd(pub i64);

impl MicroUsd {
    /// From US dollars, 0 to a million, rounded to the nearest millionth.
    #[expect(clippy::cast_possible_truncation, reason = "settings and commands bound it")]
    pub fn from_usd(usd: f64) -> Self {
        Self((usd * 1e6).round() as i64)
    }

    /// So many of these, in US dollars.
    pub fn times(self, count: u32) -> f64 {
        Self(self.0.saturating_mul(i64::from(count))).usd()
    }

    /// In US dollars.
    #[expect(clippy::cast_precision_loss, reason = "amounts are far below 2^53 millionths")]
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// How many of these can be had for an amount; `None` where they cost nothing.
    pub fn times_in(self, amount: Self) -> Option<u32> {
        let times = amount.0.checked_div(self.0)?;
        Some(u32::try_from(times).unwrap_or(u32::MAX))
    }
}
