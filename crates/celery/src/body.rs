//! The body of a message: decompressed, decoded and parsed.

use std::io::{Cursor, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::rules::MAX_BODY_BYTES;
use domain::strict_json;
use serde_json::{Map, Value};

use crate::envelope::{Envelope, shorten, text};

/// The three parts of a task's body.
pub(crate) struct Body {
    pub(crate) args: Vec<Value>,
    pub(crate) kwargs: Map<String, Value>,
    /// What follows the task: callbacks, errbacks, chain, chord.
    pub(crate) embed: Map<String, Value>,
}

impl Body {
    /// Parses the body of a message.
    ///
    /// # Errors
    ///
    /// A sentence with the field, the value and what is allowed.
    pub(crate) fn parse(envelope: &Envelope<'_>) -> Result<Self, String> {
        let content_type = envelope.content_type;
        if content_type != "application/json" {
            let shown = shorten(content_type);
            return Err(format!(
                "content_type: {shown:?} is not allowed; application/json, so task_serializer=\"json\""
            ));
        }
        let encoding = envelope.content_encoding.to_ascii_lowercase();
        let is_base64 = encoding == "base64" || text(envelope.headers, "body_encoding") == Some("base64");
        if !matches!(encoding.as_str(), "" | "utf-8" | "utf8" | "us-ascii" | "base64" | "binary") {
            return Err(format!("content_encoding: {:?} is not allowed; utf-8 or base64", shorten(&encoding)));
        }
        let decoded = is_base64.then(|| STANDARD.decode(envelope.body)).transpose();
        let decoded = decoded.map_err(|error| format!("body: not base64 ({error})"))?;
        let compressed = decoded.as_deref().unwrap_or(envelope.body);
        let bytes = decompress(compressed, text(envelope.headers, "compression").unwrap_or_default())?;
        let value = strict_json::parse(&bytes).map_err(|error| format!("body: not JSON in UTF-8 ({error})"))?;
        check_value(&value, MAX_DEPTH)?;
        let Value::Array(parts) = value else { return Err(BODY_FORMAT.to_owned()) };
        let Ok([args, kwargs, embed]) = <[Value; 3]>::try_from(parts) else { return Err(BODY_FORMAT.to_owned()) };
        // What follows the task is passed on as it is: Python reads its types again.
        match (unwrap_typed(args), unwrap_typed(kwargs), embed) {
            (Value::Array(args), Value::Object(kwargs), Value::Object(embed)) => Ok(Self { args, kwargs, embed }),
            (Value::Array(args), Value::Object(kwargs), Value::Null) => Ok(Self { args, kwargs, embed: Map::new() }),
            _ => Err(BODY_FORMAT.to_owned()),
        }
    }
}

/// The deepest nesting of a body. It is stored some levels deeper, where 128 are read.
const MAX_DEPTH: usize = 64;

/// Refuses what PostgreSQL cannot store in a JSON column, and what could not be read again.
fn check_value(value: &Value, depth: usize) -> Result<(), String> {
    let check_text = |text: &str| {
        let has_nul = text.contains('\0');
        if has_nul { Err("body: the character NUL is not allowed".to_owned()) } else { Ok(()) }
    };
    let inner = || depth.checked_sub(1).ok_or_else(|| format!("body: nested more than {MAX_DEPTH} levels deep"));
    match value {
        Value::String(text) => check_text(text),
        Value::Array(values) => {
            let depth = inner()?;
            values.iter().try_for_each(|value| check_value(value, depth))
        }
        Value::Object(object) => {
            let depth = inner()?;
            object.iter().try_for_each(|(key, value)| check_text(key).and_then(|()| check_value(value, depth)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

const BODY_FORMAT: &str = "body: not the body of Celery's protocol 2; a list of args, kwargs and embedded options";

/// Decompresses a body of at most [`MAX_BODY_BYTES`]. Celery's `gzip` is a zlib stream. Source: `kombu/compression.py`.
fn decompress(bytes: &[u8], compression: &str) -> Result<Vec<u8>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("body: not compressed with {compression} ({error})");
    let mut reader: Box<dyn Read + '_> = match compression {
        "" => Box::new(bytes),
        "application/x-gzip" => Box::new(flate2::read::ZlibDecoder::new(bytes)),
        "application/x-bz2" => Box::new(bzip2::read::BzDecoder::new(bytes)),
        "application/zstd" => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(Cursor::new(bytes)).map_err(|error| failed(&error))?)
        }
        other => return Err(format!("compression: {:?} is not allowed; zlib, bzip2 or zstd", shorten(other))),
    };
    let mut decompressed = Vec::new();
    let limit = MAX_BODY_BYTES as u64 + 1;
    reader.by_ref().take(limit).read_to_end(&mut decompressed).map_err(|error| failed(&error))?;
    if decompressed.len() > MAX_BODY_BYTES {
        return Err(format!("body: more than {MAX_BODY_BYTES} bytes is not allowed"));
    }
    Ok(decompressed)
}

/// Replaces `{"__type__": …, "__value__": …}`, by which Celery marks Python types, with the plain value. A UUID has the
/// value `{"hex": …}`. Source: `kombu/utils/json.py`.
pub(crate) fn unwrap_typed(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(unwrap_typed).collect(),
        Value::Object(mut object) if object.len() == 2 && object.contains_key("__type__") => {
            match object.remove("__value__") {
                Some(Value::Object(mut inner)) if inner.len() == 1 && inner.contains_key("hex") => {
                    inner.remove("hex").unwrap_or_default()
                }
                Some(plain) => plain,
                None => unwrap_members(object),
            }
        }
        Value::Object(object) => unwrap_members(object),
        plain => plain,
    }
}

fn unwrap_members(object: Map<String, Value>) -> Value {
    object.into_iter().map(|(key, value)| (key, unwrap_typed(value))).collect()
}
