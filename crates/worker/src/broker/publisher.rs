//! Publishing, always with a confirm: what returns `Ok` is on the broker's disk.

use std::time::Duration;

use async_trait::async_trait;
use domain::event::{CONTENT_TYPE, Event};
use domain::trace::TraceParent;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};

use super::delivery::{Incoming, REASON_HEADER};
use super::topology::{COMMANDS, DEAD_LETTER, EVENTS, GENERATE_KEY, retry_queue};
use super::{BrokerError, answered};
use crate::event_sink::{EventSink, PublishError, Routed};

/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;
/// A reason is for people; a list of every broken rule of a large command is not.
const MAX_REASON_CHARS: usize = 2_000;

/// Publishes on a channel of its own. Clones share it.
#[derive(Clone)]
pub struct Publisher {
    channel: Channel,
}

impl Publisher {
    pub(super) async fn open(channel: Channel) -> Result<Self, BrokerError> {
        answered("confirm what it takes", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self { channel })
    }

    async fn publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Routed, BrokerError> {
        let doing = "take a message";
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = properties.with_delivery_mode(PERSISTENT);
        let confirmation = answered(doing, async {
            self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await
        })
        .await?;
        match confirmation {
            Confirmation::Ack(None) => Ok(Routed::Taken),
            Confirmation::Ack(Some(_)) => Ok(Routed::Nobody),
            Confirmation::Nack(_) => Err(BrokerError { doing, cause: "it was nacked".to_owned() }),
            Confirmation::NotRequested => Err(BrokerError { doing, cause: "confirms are off".to_owned() }),
        }
    }

    /// Puts a command on its queue.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be there.
    pub async fn submit(&self, body: &[u8], trace: Option<&TraceParent>) -> Result<(), BrokerError> {
        let mut headers = FieldTable::default();
        if let Some(trace) = trace {
            headers.insert("traceparent".into(), AMQPValue::LongString(trace.as_str().into()));
        }
        let properties = BasicProperties::default().with_content_type("application/json".into()).with_headers(headers);
        routed(self.publish(COMMANDS, GENERATE_KEY, body, properties).await?)
    }

    /// Lets a command come back after a delay, as it is.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be safe; then it must not be acknowledged.
    pub async fn retry_later(&self, incoming: &Incoming, delay: Duration) -> Result<(), BrokerError> {
        routed(self.publish("", &retry_queue(delay), &incoming.body, incoming.properties.clone()).await?)
    }

    /// Gives a command to the dead letters with a reason.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be safe; then it must not be acknowledged.
    pub async fn dead_letter(&self, incoming: &Incoming, reason: &str) -> Result<(), BrokerError> {
        let mut headers = incoming.properties.headers().clone().unwrap_or_default();
        let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        let properties = incoming.properties.clone().with_headers(headers);
        routed(self.publish(DEAD_LETTER, GENERATE_KEY, &incoming.body, properties).await?)
    }
}

/// Our own queues are bound when we connect; where one is gone, the message must stay where it is.
fn routed(routed: Routed) -> Result<(), BrokerError> {
    match routed {
        Routed::Taken => Ok(()),
        Routed::Nobody => Err(BrokerError { doing: "take a message", cause: "no queue is bound for it".to_owned() }),
    }
}

#[async_trait]
impl EventSink for Publisher {
    async fn publish(&self, event: &Event) -> Result<Routed, PublishError> {
        let mut headers = FieldTable::default();
        if let Some(trace) = &event.trace_parent {
            headers.insert("traceparent".into(), AMQPValue::LongString(trace.as_str().into()));
        }
        let properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_message_id(event.id.to_string().into())
            .with_type(event.kind.as_str().into())
            .with_headers(headers);
        self.publish(EVENTS, event.routing_key(), event.body.as_bytes(), properties)
            .await
            .map_err(|error| PublishError(error.to_string()))
    }
}
