//! W3C trace context, as text that is carried on.

use serde::Serialize;

/// The trace that a message belongs to, and what the systems that took part in it noted of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceContext {
    /// The trace, and the span that what comes next is part of.
    #[serde(rename = "traceparent")]
    pub parent: TraceParent,
    /// Carried on as it is.
    #[serde(rename = "tracestate", skip_serializing_if = "Option::is_none")]
    pub state: Option<TraceState>,
}

impl TraceContext {
    /// Takes the values of the headers `traceparent` and `tracestate`; `None` where the first is missing or not well formed.
    pub fn parse(parent: Option<&str>, state: Option<&str>) -> Option<Self> {
        let parent = TraceParent::parse(parent?)?;
        Some(Self { parent, state: state.and_then(TraceState::parse) })
    }
}

/// A `traceparent` header that has the form W3C Trace Context (level 1, version 00) gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TraceParent(String);

impl TraceParent {
    /// Takes a header's value; `None` where it is not well formed, which the standard tells receivers to ignore.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        let [version, trace_id, parent_id, flags] = parts.as_slice() else { return None };
        let hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let not_zero = |part: &str| part.bytes().any(|b| b != b'0');
        (*version == "00"
            && hex(trace_id, 32)
            && hex(parent_id, 16)
            && hex(flags, 2)
            && not_zero(trace_id)
            && not_zero(parent_id))
        .then(|| Self(parts.join("-")))
    }

    /// The header's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The longest `tracestate` that is carried on, in characters: what W3C Trace Context wants of everybody at least.
const MAX_STATE_CHARS: usize = 512;

/// A `tracestate` header: for those who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TraceState(String);

impl TraceState {
    /// Takes a header's value; `None` where it is empty, longer than 512 characters, or not made of entries `key=value` in printable ASCII.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let entry = |entry: &str| {
            entry.trim().is_empty() || entry.split_once('=').is_some_and(|(key, _)| !key.trim().is_empty())
        };
        let good = !text.is_empty()
            && text.len() <= MAX_STATE_CHARS
            && text.bytes().all(|b| matches!(b, b' '..=b'~'))
            && text.split(',').all(entry);
        good.then(|| Self(text.to_owned()))
    }

    /// The header's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trace_state_of_entries_is_carried_on() {
        let check = |text: &str, good: bool| assert_eq!(TraceState::parse(text).is_some(), good, "{text}");
        check("vendor=opaque,other@tenant=1", true);
        check(" vendor=a=b , ", true);
        check("", false);
        check("vendor", false);
        check("=opaque", false);
        check("vendor=\u{1}", false);
        check(&format!("vendor={}", "x".repeat(512)), false);
    }

    #[test]
    fn only_well_formed_trace_parents_are_carried_on() {
        let check = |text: &str, good: bool| assert_eq!(TraceParent::parse(text).is_some(), good, "{text}");
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true);
        check(" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00 ", true);
        check("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false);
        check("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false);
        check("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false);
        check("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", false);
        check("", false);
    }
}
