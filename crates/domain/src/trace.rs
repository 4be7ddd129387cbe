//! W3C trace context, kept as the text of its headers for propagation.

use schemars::JsonSchema;
use serde::Serialize;

/// The trace that a message belongs to, with the vendor-specific data of the systems that took part in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TraceContext {
    /// The trace id and the id of the parent span.
    #[serde(rename = "traceparent")]
    pub parent: TraceParent,
    /// Vendor-specific data, propagated unchanged.
    #[serde(rename = "tracestate", skip_serializing_if = "Option::is_none")]
    pub state: Option<TraceState>,
}

impl TraceContext {
    /// Parses the headers `traceparent` and `tracestate`; `None` if the first is missing or malformed.
    ///
    /// A malformed `tracestate` is ignored.
    pub fn parse(parent: Option<&str>, state: Option<&str>) -> Option<Self> {
        let parent = TraceParent::parse(parent?)?;
        Some(Self { parent, state: state.and_then(TraceState::parse) })
    }
}

/// A well-formed `traceparent` header of W3C Trace Context (level 1, version 00).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct TraceParent(String);

impl TraceParent {
    /// Parses a header value; `None` if it is malformed. The standard tells receivers to ignore such a header.
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

    /// The header value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The longest `tracestate` that is propagated, in characters: the minimum that W3C Trace Context requires.
const MAX_STATE_CHARS: usize = 512;

/// A well-formed `tracestate` header: vendor-specific data, opaque to this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct TraceState(String);

impl TraceState {
    /// Parses a header value; `None` if it is empty, longer than 512 characters, or not a list of `key=value` entries
    /// in printable ASCII. Empty list entries are allowed.
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

    /// The header value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_trace_states_are_accepted() {
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
    fn only_well_formed_trace_parents_are_accepted() {
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
