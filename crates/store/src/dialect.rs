//! SQL that differs between PostgreSQL and SQLite.

use sea_orm::DbBackend;

/// SQL expressions of one database.
pub(super) struct Dialect {
    /// Microseconds since 1970 at the time of the statement, not of the start of its transaction. SQLite's clock has a
    /// resolution of milliseconds.
    pub(super) clock_us: &'static str,
    /// The current day in UTC, such as `2026-11-24`.
    pub(super) today: &'static str,
    /// The UTC day of `jobs.created_at`, such as `2026-11-24`.
    pub(super) created_day: &'static str,
    /// Name of the function that returns the greatest of its arguments.
    pub(super) greatest: &'static str,
    /// Name of the function that returns the least of its arguments.
    pub(super) least: &'static str,
    /// Suffix of a query that lets others read its rows, but not change them, until the transaction ends.
    for_share: &'static str,
    /// Suffix of a query whose rows the transaction will change.
    for_update: &'static str,
}

impl Dialect {
    pub(super) fn for_backend(backend: DbBackend) -> Self {
        match backend {
            DbBackend::Sqlite => Self {
                clock_us: "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS BIGINT) * 1000",
                today: "date('now')",
                // Times are stored as texts in UTC.
                created_day: "substr(jobs.created_at, 1, 10)",
                greatest: "max",
                least: "min",
                // SQLite has one writer at a time.
                for_share: "",
                for_update: "",
            },
            _ => Self {
                clock_us: "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
                today: "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
                created_day: "to_char(jobs.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
                greatest: "greatest",
                least: "least",
                for_share: " FOR SHARE",
                for_update: " FOR UPDATE",
            },
        }
    }

    /// Suffix of a query that locks its rows until the transaction ends, against changes or for a change.
    pub(super) fn row_lock(&self, for_update: bool) -> &'static str {
        if for_update { self.for_update } else { self.for_share }
    }
}
