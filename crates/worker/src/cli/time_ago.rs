//! Durations of arguments as times in the past.

use std::time::Duration;

use time::OffsetDateTime;

/// The time this long before now, at the earliest 1970.
pub(super) fn time_ago(duration: Duration) -> OffsetDateTime {
    let duration = time::Duration::try_from(duration).unwrap_or(time::Duration::MAX);
    OffsetDateTime::now_utc().saturating_sub(duration).max(OffsetDateTime::UNIX_EPOCH)
}
