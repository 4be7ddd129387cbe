//! The parts of a message that a task is read from, and how values are shown and written.

use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// The parts of an AMQP message that a task is read from.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The property `headers`.
    pub headers: &'a Map<String, Value>,
    /// The property `content_type`; empty if absent.
    pub content_type: &'a str,
    /// The property `content_encoding`; empty if absent.
    pub content_encoding: &'a str,
    /// The property `reply_to`.
    pub reply_to: Option<&'a str>,
    /// The property `correlation_id`.
    pub correlation_id: Option<&'a str>,
    /// The property `priority`.
    pub priority: Option<u8>,
    /// The body as received.
    pub body: &'a [u8],
}

/// The text of a header.
pub(crate) fn text<'a>(headers: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(Value::as_str)
}

/// A value as an error repeats it.
pub(crate) fn shorten(value: &str) -> String {
    value.chars().take(60).collect()
}

/// A time in ISO 8601 as Python writes it: with microseconds at most, and an offset in digits.
pub(crate) fn format_time(time: OffsetDateTime) -> String {
    let microseconds = time.to_offset(UtcOffset::UTC).replace_nanosecond(time.microsecond() * 1_000).unwrap_or(time);
    let text = microseconds.format(&Rfc3339).expect("a UTC time can be formatted as RFC 3339");
    text.replace('Z', "+00:00")
}
