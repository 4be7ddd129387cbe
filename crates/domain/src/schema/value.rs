//! Schemas of single values, which say exactly what the parser of messages accepts.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::rules::{MAX_DESCRIPTION_CHARS, MAX_IMAGES, MAX_REASON_CHARS, MAX_STYLE_MODIFIERS};

/// The characters that are trimmed: those with Unicode's property `White_Space`.
const SPACE: &str = r"\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";

/// A regular expression of ECMA-262 for a text whose length is limited after trimming, and that has no NUL.
fn trimmed_text(min_chars: usize, max_chars: usize) -> String {
    let inner = max_chars.saturating_sub(2);
    let text = format!(r"[^{SPACE}\u0000](?:[^\u0000]{{0,{inner}}}[^{SPACE}\u0000])?");
    let text = if min_chars == 0 { format!("(?:{text})?") } else { text };
    format!("^[{SPACE}]*{text}[{SPACE}]*$")
}

/// A regular expression for the forms of a UUID: with hyphens, also in braces or as a URN; or 32 hexadecimal digits.
fn uuid_forms() -> String {
    let hyphenated = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
    let urn = "(?:[uU][rR][nN]:[uU][uU][iI][dD]:)?";
    format!(r"^(?:{urn}{hyphenated}|\{{{hyphenated}\}}|[0-9a-fA-F]{{32}})$")
}

/// A regular expression for a time by RFC 3339 in the years 1 to 9998, without leap seconds.
fn rfc3339() -> String {
    let year = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]|999[0-8])";
    let fourth = "(?:0[48]|[2468][048]|[13579][26])";
    let leap_year = format!("(?:[0-9]{{2}}{fourth}|{fourth}00)");
    let months = [
        "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
        "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
        "02-(?:0[1-9]|1[0-9]|2[0-8])",
    ]
    .join("|");
    let date = format!("(?:{year}-(?:{months})|{leap_year}-02-29)");
    let time = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?";
    let offset = "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
    format!("^{date}[Tt ]{time}{offset}$")
}

fn optional_text(max_chars: usize) -> Schema {
    json_schema!({ "type": ["string", "null"], "pattern": trimmed_text(0, max_chars) })
}

fn texts(types: &Value, min: usize, max: usize) -> Schema {
    let items = json_schema!({ "type": "string", "pattern": trimmed_text(1, MAX_DESCRIPTION_CHARS) });
    json_schema!({ "type": types, "minItems": min, "maxItems": max, "items": items })
}

pub(crate) fn uuid(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": uuid_forms() })
}

pub(crate) fn project_id(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": i64::MAX })
}

pub(crate) fn descriptions(_: &mut SchemaGenerator) -> Schema {
    texts(&"array".into(), 1, MAX_IMAGES)
}

pub(crate) fn style_modifiers(_: &mut SchemaGenerator) -> Schema {
    texts(&["array", "null"].as_slice().into(), 0, MAX_STYLE_MODIFIERS)
}

pub(crate) fn negative_prompt(_: &mut SchemaGenerator) -> Schema {
    optional_text(MAX_DESCRIPTION_CHARS)
}

pub(crate) fn reason(_: &mut SchemaGenerator) -> Schema {
    optional_text(MAX_REASON_CHARS)
}

pub(crate) fn expiry(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "pattern": rfc3339() })
}
