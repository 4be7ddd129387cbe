//! Properties of published messages, and the limits of AMQP for them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use domain::event::{CONTENT_TYPE, Event};
use domain::outgoing::OutgoingMessage;
use domain::trace::TraceContext;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;
use uuid::Uuid;

use super::headers;
use super::message::is_broker_header;

/// Delivery mode of messages that a restart of the broker may lose.
pub(super) const TRANSIENT: u8 = 1;
/// The longest name that AMQP allows.
const MAX_NAME_BYTES: usize = 255;
/// The most bytes of headers, in JSON. In AMQP they must fit into one frame, of 128 KiB by default.
const MAX_HEADER_BYTES: usize = 60_000;

/// Whether names and headers of a message can be encoded.
pub(super) fn is_within_limits(message: &OutgoingMessage) -> bool {
    let OutgoingMessage { exchange, routing_key, correlation_id, reply_to, headers, .. } = message;
    let names = [exchange, routing_key, correlation_id].into_iter().chain(reply_to);
    names.into_iter().all(|name| name.len() <= MAX_NAME_BYTES)
        && headers.iter().all(|(name, value)| name.len() <= MAX_NAME_BYTES && has_short_keys(value))
        && serde_json::to_string(headers).is_ok_and(|headers| headers.len() <= MAX_HEADER_BYTES)
}

fn has_short_keys(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().all(has_short_keys),
        Value::Object(object) => {
            object.iter().all(|(name, value)| name.len() <= MAX_NAME_BYTES && has_short_keys(value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

pub(super) fn message_properties(message: &OutgoingMessage) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_correlation_id(message.correlation_id.as_str().into())
        .with_headers(headers::from_json(&message.headers));
    if let Some(reply_to) = &message.reply_to {
        properties = properties.with_reply_to(reply_to.as_str().into());
    }
    if let Some(priority) = message.priority {
        properties = properties.with_priority(priority);
    }
    if message.kept_if_unrouted { properties } else { properties.with_delivery_mode(TRANSIENT) }
}

/// The properties of a new command.
pub(super) fn command_properties(job_id: Uuid, priority: Option<u8>, trace: Option<&TraceContext>) -> BasicProperties {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id(job_id.to_string().into())
        .with_timestamp(now.as_secs())
        .with_headers(trace_headers(trace));
    match priority {
        Some(priority) => properties.with_priority(priority),
        None => properties,
    }
}

pub(super) fn event_properties(event: &Event) -> BasicProperties {
    BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_message_id(event.id.to_string().into())
        .with_type(event.kind.as_str().into())
        .with_headers(trace_headers(event.trace.as_ref()))
}

/// Headers of W3C Trace Context.
pub(super) fn trace_headers(trace: Option<&TraceContext>) -> FieldTable {
    let mut headers = FieldTable::default();
    if let Some(TraceContext { parent, state }) = trace {
        headers.insert("traceparent".into(), AMQPValue::LongString(parent.as_str().into()));
        if let Some(state) = state {
            headers.insert("tracestate".into(), AMQPValue::LongString(state.as_str().into()));
        }
    }
    headers
}

/// The producer's properties that are kept when a command is published to another queue.
///
/// Left out are `expiration`, with which the message could expire there; `user_id`, which the broker accepts only from
/// that user; the headers `CC` and `BCC`, which would send further copies; and the broker's own headers.
pub(super) fn forwarded_properties(properties: &BasicProperties) -> BasicProperties {
    let mut forwarded = BasicProperties::default();
    if let Some(content_type) = properties.content_type() {
        forwarded = forwarded.with_content_type(content_type.clone());
    }
    if let Some(content_encoding) = properties.content_encoding() {
        forwarded = forwarded.with_content_encoding(content_encoding.clone());
    }
    if let Some(message_id) = properties.message_id() {
        forwarded = forwarded.with_message_id(message_id.clone());
    }
    if let Some(reply_to) = properties.reply_to() {
        forwarded = forwarded.with_reply_to(reply_to.clone());
    }
    if let Some(correlation_id) = properties.correlation_id() {
        forwarded = forwarded.with_correlation_id(correlation_id.clone());
    }
    if let Some(priority) = properties.priority() {
        forwarded = forwarded.with_priority(*priority);
    }
    if let Some(timestamp) = properties.timestamp() {
        forwarded = forwarded.with_timestamp(*timestamp);
    }
    if let Some(kind) = properties.kind() {
        forwarded = forwarded.with_type(kind.clone());
    }
    if let Some(app_id) = properties.app_id() {
        forwarded = forwarded.with_app_id(app_id.clone());
    }
    if let Some(headers) = properties.headers() {
        let kept = headers.inner().iter().filter(|(name, _)| {
            let name = name.as_str();
            !matches!(name, "CC" | "BCC") && !is_broker_header(name)
        });
        forwarded = forwarded
            .with_headers(kept.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>().into());
    }
    forwarded
}
