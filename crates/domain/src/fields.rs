//! Reads the keys of one JSON object, collecting what is wrong with each.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

/// How many characters of a refused value are repeated in the error.
const SHOWN_CHARS: usize = 60;
/// The most broken rules that are told one by one.
const MAX_VIOLATIONS: usize = 20;

/// The keys of an object that have not been asked for yet, and what was wrong with those that have.
pub(crate) struct Fields {
    path: &'static str,
    left: Map<String, Value>,
    known: Vec<&'static str>,
    violations: Vec<String>,
}

impl Fields {
    pub(crate) fn root(object: Map<String, Value>) -> Self {
        Self::at("", object)
    }

    fn at(path: &'static str, object: Map<String, Value>) -> Self {
        Self { path, left: object, known: Vec::new(), violations: Vec::new() }
    }

    /// Every rule that was broken; keys that nobody asked for are refused by name.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let known = self.known.join(", ");
        for key in self.left.keys() {
            // Escaped, since a key may hold what neither a log nor a database takes.
            let key = truncated(key).escape_debug().to_string();
            self.violations.push(format!("{}{key}: unknown key; allowed: {known}", self.path));
        }
        self.violations
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.left.remove(key).filter(|value| !value.is_null())
    }

    fn refuse(&mut self, key: impl Display, value: impl Display, allowed: impl Display) {
        self.violations.push(format!("{}{key}: {value} is not allowed; {allowed}", self.path));
    }

    /// Reports `key` as missing unless something was already said about it.
    pub(crate) fn missing(&mut self, key: &'static str, allowed: &str) {
        let said = format!("{}{key}", self.path);
        if !self.violations.iter().any(|violation| violation.starts_with(&said)) {
            self.violations.push(format!("{said}: missing; {allowed}"));
        }
    }

    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let read = read(&value);
        if read.is_none() {
            self.refuse(key, shown(&value), allowed);
        }
        read
    }

    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let read = self.optional(key, allowed, read);
        if read.is_none() {
            self.missing(key, allowed);
        }
        read
    }

    pub(crate) fn object(&mut self, key: &'static str) -> Option<Self> {
        match self.take(key)? {
            Value::Object(object) => Some(Self::at("config.", object)),
            other => {
                self.refuse(key, shown(&other), "a JSON object");
                None
            }
        }
    }

    pub(crate) fn number(&mut self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        self.optional(key, &allowed, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    pub(crate) fn integer<T>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<u64> + PartialOrd + Display,
    {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.optional(key, &allowed, |value| {
            value.as_u64().and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number))
        })
    }

    pub(crate) fn one_of(&mut self, key: &'static str, names: &[&'static str]) -> Option<String> {
        let allowed = format!("one of {}", names.join(", "));
        self.optional(key, &allowed, |value| value.as_str().filter(|name| names.contains(name)).map(str::to_owned))
    }

    pub(crate) fn text(&mut self, key: &'static str, chars: RangeInclusive<usize>) -> Option<String> {
        let value = self.take(key)?;
        self.checked_text(key, &value, &chars)
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
            self.refuse(key, shown(&value), allowed);
            return None;
        };
        if !count.contains(&items.len()) {
            self.refuse(key, format_args!("a list of {}", items.len()), allowed);
            return None;
        }
        let texts: Vec<_> = items
            .iter()
            .enumerate()
            .filter_map(|(position, item)| self.checked_text(format!("{key}[{position}]"), item, &chars))
            .collect();
        (texts.len() == items.len()).then_some(texts)
    }

    /// A text, trimmed. NUL is refused because PostgreSQL cannot store it.
    fn checked_text(&mut self, key: impl Display, value: &Value, chars: &RangeInclusive<usize>) -> Option<String> {
        let allowed = format!("a text of {} to {} characters after trimming", chars.start(), chars.end());
        let Some(text) = value.as_str().map(str::trim) else {
            self.refuse(key, shown(value), allowed);
            return None;
        };
        if text.contains('\0') {
            self.refuse(key, "a NUL character", allowed);
            return None;
        }
        let length = text.chars().count();
        if !chars.contains(&length) {
            self.refuse(key, format_args!("{length} characters"), allowed);
            return None;
        }
        Some(text.to_owned())
    }
}

/// A body of megabytes can break a rule with every key; an error message of as many bytes helps nobody.
pub(crate) fn first_ones(mut violations: Vec<String>) -> Vec<String> {
    let left_out = violations.len().saturating_sub(MAX_VIOLATIONS);
    if left_out > 0 {
        violations.truncate(MAX_VIOLATIONS);
        violations.push(format!("and {left_out} more"));
    }
    violations
}

/// A value as an error repeats it: JSON, cut short. JSON escapes only some of the control characters.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        other => truncated(&other.to_string().replace(char::is_control, "\u{FFFD}")),
    }
}

fn truncated(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
