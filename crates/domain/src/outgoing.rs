//! Messages that are published when a job starts, progresses or ends, beside its events.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A message for one receiver, whose body is final.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutgoingMessage {
    /// The exchange; empty for the default exchange, whose routing keys are names of queues.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Whether the message is kept if no queue receives it; otherwise it is dropped.
    pub kept_if_unrouted: bool,
    /// The property `correlation_id`.
    pub correlation_id: String,
    /// The property `reply_to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// The property `priority`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// The property `headers`.
    #[serde(default)]
    pub headers: Map<String, Value>,
    /// The body, in JSON.
    pub body: Value,
}
