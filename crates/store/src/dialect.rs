//! What PostgreSQL and SQLite write differently.

use sea_orm::DbBackend;

/// SQL of one database.
pub(super) struct Dialect {
    /// Microseconds since 1970, at this very statement and not at the beginning of its transaction. SQLite's clock has milliseconds.
    pub(super) clock_us: &'static str,
    /// The day in UTC, as `2026-11-24`.
    pub(super) today: &'static str,
    /// The function that returns the greatest of its arguments.
    pub(super) greatest: &'static str,
}

impl Dialect {
    pub(super) fn of(backend: DbBackend) -> Self {
        match backend {
            DbBackend::Sqlite => Self {
                clock_us: "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS BIGINT) * 1000",
                today: "date('now')",
                greatest: "max",
            },
            _ => Self {
                clock_us: "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
                today: "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
                greatest: "greatest",
            },
        }
    }
}
