//! Remote control and events, by which Celery's tools see a worker.
//!
//! Source: `kombu/pidbox.py`, `celery/worker/control.py`, `celery/events/dispatcher.py`, version 5.7.

use domain::outgoing::OutgoingMessage;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// The fanout exchange of remote control.
pub const CONTROL_EXCHANGE: &str = "celery.pidbox";
/// The direct exchange of replies to remote control.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";
/// The topic exchange of events.
pub const EVENT_EXCHANGE: &str = "celeryev";
/// Seconds between two heartbeats of a node.
pub const HEARTBEAT_SECONDS: u64 = 2;

/// The name of a node's queue for remote control.
pub fn control_queue(node: &str) -> String {
    format!("{node}.{CONTROL_EXCHANGE}")
}

/// What a message of remote control asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Cancel the jobs of these tasks.
    Revoke(Vec<String>),
    /// Say that the node is there.
    Ping,
    /// List the tasks that are running.
    Active,
    /// List the tasks that are received and wait, or are due later: none is held back by a node.
    Waiting,
    /// Describe the process.
    Stats,
    /// List the names of the accepted tasks.
    Registered,
    /// List the queues that it consumes from.
    ActiveQueues,
    /// A method that is not supported.
    Unknown(String),
}

/// A message of remote control for this node.
#[derive(Debug)]
pub struct Control {
    /// What it asks for.
    pub request: Request,
    /// The routing key of the reply; `None` if no reply is expected.
    reply_to: Option<String>,
    ticket: Value,
}

impl Control {
    /// Parses a message; `None` if it is for other nodes, or cannot be read.
    pub fn parse(body: &[u8], node: &str) -> Option<Self> {
        let message: Value = serde_json::from_slice(body).ok()?;
        let is_for_us = match (&message["destination"], message["pattern"].as_str(), message["matcher"].as_str()) {
            (Value::Array(nodes), _, _) if !nodes.is_empty() => nodes.iter().any(|name| name == node),
            (Value::String(name), _, _) => name == node,
            (_, Some(pattern), Some("glob")) => matches_glob(pattern.as_bytes(), node.as_bytes()),
            // Python's regular expressions are not supported.
            (_, Some(_), Some(_)) => false,
            _ => true,
        };
        let method = message["method"].as_str().filter(|_| is_for_us)?;
        let arguments = &message["arguments"];
        let request = match method {
            "revoke" | "terminate" => Request::Revoke(texts(&arguments["task_id"])),
            "ping" => Request::Ping,
            "active" | "dump_active" => Request::Active,
            "reserved" | "dump_reserved" | "scheduled" | "dump_schedule" => Request::Waiting,
            "stats" => Request::Stats,
            "registered" | "dump_tasks" => Request::Registered,
            "active_queues" => Request::ActiveQueues,
            other => Request::Unknown(other.to_owned()),
        };
        let reply_to = &message["reply_to"];
        let reply_to = reply_to["routing_key"].as_str().filter(|_| reply_to["exchange"] == REPLY_EXCHANGE);
        Some(Self { request, reply_to: reply_to.map(str::to_owned), ticket: message["ticket"].clone() })
    }

    /// The reply with the node's answer, if one is expected.
    pub fn reply(&self, node: &str, answer: &Value) -> Option<OutgoingMessage> {
        let routing_key = self.reply_to.clone()?;
        let mut headers = Map::new();
        headers.insert("ticket".to_owned(), self.ticket.clone());
        Some(transient(REPLY_EXCHANGE, routing_key, headers, json!({ node: answer })))
    }
}

/// The reply to a method that is not supported.
pub fn unknown_method(method: &str) -> Value {
    let method: String = method.chars().take(60).collect();
    json!({"error": format!("{method}: not supported; revoke, ping, active, reserved, stats, registered, active_queues")})
}

/// A text, or a list of texts.
fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// Whether a name matches a pattern with `*` for any characters and `?` for one. Takes at most the product of their
/// lengths.
fn matches_glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut in_pattern, mut in_name) = (0, 0);
    // The last `*`, and where the rest of the name was compared with what follows it.
    let mut star = None;
    while in_name < name.len() {
        match pattern.get(in_pattern) {
            Some(b'*') => {
                star = Some((in_pattern, in_name));
                in_pattern += 1;
            }
            Some(character) if *character == b'?' || *character == name[in_name] => {
                in_pattern += 1;
                in_name += 1;
            }
            _ => {
                let Some((after, compared)) = star else { return false };
                star = Some((after, compared + 1));
                (in_pattern, in_name) = (after + 1, compared + 1);
            }
        }
    }
    pattern[in_pattern..].iter().all(|character| *character == b'*')
}

/// An event of a node. `kind` is its type, such as `task-received`, and `fields` are those of its own.
pub fn event(kind: &str, node: &str, clock: u64, now: OffsetDateTime, fields: Value) -> OutgoingMessage {
    let mut event = json!({
        "type": kind,
        "hostname": node,
        "pid": std::process::id(),
        "utcoffset": 0,
        "clock": clock,
        "timestamp": timestamp(now),
    });
    if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
        event.extend(fields);
    }
    let mut headers = Map::new();
    headers.insert("hostname".to_owned(), node.into());
    transient(EVENT_EXCHANGE, kind.replace('-', "."), headers, event)
}

/// Seconds since 1970, with fractions.
pub fn timestamp(time: OffsetDateTime) -> f64 {
    (time - OffsetDateTime::UNIX_EPOCH).as_seconds_f64()
}

fn transient(exchange: &str, routing_key: String, headers: Map<String, Value>, body: Value) -> OutgoingMessage {
    OutgoingMessage {
        exchange: exchange.to_owned(),
        routing_key,
        kept_if_unrouted: false,
        correlation_id: String::new(),
        reply_to: None,
        priority: None,
        headers,
        body,
    }
}
