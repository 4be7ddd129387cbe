//! Reads the keys of one JSON object and collects all violations.
//!
//! A key with the value `null` counts as absent. A violation is a sentence: key, value, allowed values.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use crate::rules::MAX_BODY_BYTES;
use crate::strict_json;

/// The most characters of a rejected value that an error repeats.
const MAX_VALUE_CHARS: usize = 60;
/// The most violations that an error lists one by one.
const MAX_VIOLATIONS: usize = 20;

/// The keys of an object that have not been read yet, and the violations found in those that have.
pub struct Fields {
    path: &'static str,
    remaining: Map<String, Value>,
    known_keys: Vec<&'static str>,
    violations: Vec<String>,
}

impl Fields {
    /// Begins to read the keys of an object.
    pub fn new(object: Map<String, Value>) -> Self {
        Self::with_path("", object)
    }

    fn with_path(path: &'static str, object: Map<String, Value>) -> Self {
        Self { path, remaining: object, known_keys: Vec::new(), violations: Vec::new() }
    }

    /// Returns all violations; each key that was not read is reported as unknown.
    pub fn into_violations(mut self) -> Vec<String> {
        let known = if self.known_keys.is_empty() { "none".to_owned() } else { self.known_keys.join(", ") };
        for key in self.remaining.keys() {
            // Escaped, because a key may contain characters that a log or a database does not accept.
            let key = truncate_text(key).escape_debug().to_string();
            self.violations.push(format!("{}{key}: unknown key; allowed: {known}", self.path));
        }
        self.violations
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known_keys.push(key);
        self.remaining.remove(key).filter(|value| !value.is_null())
    }

    fn reject(&mut self, key: impl Display, value: impl Display, allowed: impl Display) {
        self.violations.push(format!("{}{key}: {value} is not allowed; {allowed}", self.path));
    }

    /// Reports a key as missing, unless there is already a violation of it.
    pub fn report_missing(&mut self, key: &'static str, allowed: &str) {
        let prefix = format!("{}{key}", self.path);
        if !self.violations.iter().any(|violation| violation.starts_with(&prefix)) {
            self.violations.push(format!("{prefix}: missing; {allowed}"));
        }
    }

    /// The value of a key, if it is there and `read` accepts it; `allowed` says which values it does.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let read = read(&value);
        if read.is_none() {
            self.reject(key, describe_value(&value), allowed);
        }
        read
    }

    /// The value of a key that must be there.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let read = self.optional(key, allowed, read);
        if read.is_none() {
            self.report_missing(key, allowed);
        }
        read
    }

    pub(crate) fn object(&mut self, key: &'static str) -> Option<Self> {
        match self.take(key)? {
            Value::Object(object) => Some(Self::with_path("config.", object)),
            other => {
                self.reject(key, describe_value(&other), "a JSON object");
                None
            }
        }
    }

    pub(crate) fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        self.optional(key, &allowed, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    /// A whole number.
    pub fn integer<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + Display,
    {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.optional(key, &allowed, |value| {
            as_whole_number(value).and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number))
        })
    }

    /// A time by RFC 3339, in UTC. Leap seconds are refused, and years that another offset could move out of 0 to 9999.
    pub(crate) fn time(&mut self, key: &'static str) -> Option<OffsetDateTime> {
        let allowed = "a time by RFC 3339, such as \"2026-12-01T12:00:00Z\"";
        self.optional(key, allowed, |value| {
            let text = value.as_str()?;
            let is_strict =
                matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) && text.get(17..19) != Some("60");
            let time = OffsetDateTime::parse(text, &Rfc3339).ok().filter(|_| is_strict)?;
            (1..=9_998).contains(&time.year()).then(|| time.to_offset(UtcOffset::UTC))
        })
    }

    /// A truth value.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        self.optional(key, "true or false", Value::as_bool)
    }

    pub(crate) fn one_of(&mut self, key: &'static str, names: &[&'static str]) -> Option<String> {
        let allowed = format!("one of {}", names.join(", "));
        self.optional(key, &allowed, |value| value.as_str().filter(|name| names.contains(name)).map(str::to_owned))
    }

    /// A text, trimmed, with this number of characters after trimming and without NUL.
    pub fn text(&mut self, key: &'static str, chars: RangeInclusive<usize>) -> Option<String> {
        let value = self.take(key)?;
        self.check_text(key, &value, &chars)
    }

    pub(crate) fn texts(
        &mut self,
        key: &'static str,
        count: RangeInclusive<usize>,
        chars: RangeInclusive<usize>,
    ) -> Option<Vec<String>> {
        let value = self.take(key)?;
        let allowed = format!("a list of {} to {} texts", count.start(), count.end());
        let Value::Array(items) = value else {
            self.reject(key, describe_value(&value), allowed);
            return None;
        };
        if !count.contains(&items.len()) {
            self.reject(key, format_args!("a list of {}", items.len()), allowed);
            return None;
        }
        let texts: Vec<_> = items
            .iter()
            .enumerate()
            .filter_map(|(position, item)| self.check_text(format!("{key}[{position}]"), item, &chars))
            .collect();
        (texts.len() == items.len()).then_some(texts)
    }

    /// Trims and checks a text. NUL is rejected because PostgreSQL cannot store it.
    fn check_text(&mut self, key: impl Display, value: &Value, chars: &RangeInclusive<usize>) -> Option<String> {
        let allowed = format!("a text of {} to {} characters after trimming", chars.start(), chars.end());
        let Some(text) = value.as_str().map(str::trim) else {
            self.reject(key, describe_value(value), allowed);
            return None;
        };
        if text.contains('\0') {
            self.reject(key, "a NUL character", allowed);
            return None;
        }
        let length = text.chars().count();
        if !chars.contains(&length) {
            self.reject(key, format_args!("{length} characters"), allowed);
            return None;
        }
        Some(text.to_owned())
    }
}

/// The value of a whole number of at least 0. As in JSON Schema, `7.0` is one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the number is whole and below 2^64")]
pub(crate) fn as_whole_number(value: &Value) -> Option<u64> {
    const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;
    let is_whole = |number: &f64| number.fract() == 0.0 && (0.0..TWO_TO_64).contains(number);
    value.as_u64().or_else(|| value.as_f64().filter(is_whole).map(|number| number as u64))
}

/// The value of an enum that is named by a text.
pub(crate) fn from_name<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok().filter(|_| value.is_string())
}

/// The object in a message body of at most [`MAX_BODY_BYTES`].
///
/// # Errors
///
/// The violation, if the body is something else.
pub fn parse_object(body: &[u8]) -> Result<Map<String, Value>, String> {
    if body.len() > MAX_BODY_BYTES {
        return Err(format!("body: {} bytes is not allowed; at most {MAX_BODY_BYTES} bytes", body.len()));
    }
    match strict_json::parse(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(value) => Err(format!("body: {} is not allowed; a JSON object", describe_value(&value))),
        Err(error) => Err(format!("body: not JSON in UTF-8 ({error})")),
    }
}

/// Reads the key `job_id` of a body whose job is known by other means: there it may be absent.
pub(crate) fn job_id(fields: &mut Fields, known: Option<Uuid>) -> Option<Uuid> {
    let parse = |value: &Value| value.as_str().and_then(|text| Uuid::try_parse(text).ok());
    match known {
        None => fields.required("job_id", "a UUID", parse),
        Some(known) => {
            let allowed = format!("{known}, or no value");
            fields.optional("job_id", &allowed, |value| parse(value).filter(|id| *id == known));
            Some(known)
        }
    }
}

/// Limits the length of the error: a body of megabytes may have a violation in every key.
pub fn truncate_violations(mut violations: Vec<String>) -> Vec<String> {
    let left_out = violations.len().saturating_sub(MAX_VIOLATIONS);
    if left_out > 0 {
        violations.truncate(MAX_VIOLATIONS);
        violations.push(format!("and {left_out} more"));
    }
    violations
}

/// A value as shown in an error: truncated JSON, control characters replaced because JSON escapes only some of them.
pub(crate) fn describe_value(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        other => truncate_text(&other.to_string().replace(char::is_control, "\u{FFFD}")),
    }
}

fn truncate_text(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
