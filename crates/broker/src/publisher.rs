//! Publishing, always with a confirm: what returns `Ok` is on the broker's disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use domain::event::{CONTENT_TYPE, Event, EventKind};
use domain::trace::TraceContext;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation};

use tokio::sync::Mutex;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use super::delivery::{Message, REASON_HEADER, REJECTED_AT_HEADER, is_the_brokers, now};
use super::topology::{COMMANDS, DEAD_LETTER, EVENTS, GENERATE_KEY, retry_queue};
use super::{BrokerError, Server, answered};

/// The longest description of a failure in a span.
const MAX_DESCRIPTION_CHARS: usize = 300;
/// Survives a restart of the broker.
const PERSISTENT: u8 = 2;
/// A reason is for people; a list of every broken rule of a large command is not.
const MAX_REASON_CHARS: usize = 2_000;

/// Whether any queue took a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routed {
    /// At least one did.
    Taken,
    /// None is bound for it.
    Unrouted,
}

/// Publishes on channels of its own. Clones share them.
#[derive(Clone)]
pub struct Publisher {
    /// For what must be known to be on a queue. lapin gives a returned message to whichever confirm comes next, so that on this
    /// channel one message at a time is published.
    certain: Arc<Mutex<Channel>>,
    /// For events that are for watching only.
    watching: Channel,
    server: Server,
}

impl Publisher {
    pub(super) async fn open(certain: Channel, watching: Channel, server: Server) -> Result<Self, BrokerError> {
        for channel in [&certain, &watching] {
            answered("confirm what it takes", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        }
        Ok(Self { certain: Arc::new(Mutex::new(certain)), watching, server })
    }

    /// Host and port of the broker, for spans.
    pub fn server(&self) -> (Option<&str>, Option<u16>) {
        (self.server.host.as_deref(), self.server.port)
    }

    /// A producer's span, by OpenTelemetry's conventions for RabbitMQ.
    fn span(&self, exchange: &str, key: &str, operation: &'static str) -> Span {
        let destination = if exchange.is_empty() { key.to_owned() } else { format!("{exchange}:{key}") };
        info_span!(
            "publish",
            otel.name = format!("{operation} {destination}"),
            otel.kind = "producer",
            messaging.system = "rabbitmq",
            messaging.operation.name = operation,
            "messaging.operation.type" = "send",
            messaging.destination.name = destination,
            messaging.rabbitmq.destination.routing_key = key,
            messaging.message.id = Empty,
            server.address = self.server.host,
            server.port = self.server.port,
            "error.type" = Empty,
            otel.status_code = Empty,
            otel.status_description = Empty,
        )
    }

    /// Publishes a message, and says whether a queue took it.
    async fn publish(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Routed, BrokerError> {
        let channel = self.certain.lock().await;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        confirmed(&channel, exchange, key, options, body, properties).await
    }

    /// Puts a command on its queue. `trace` is called in the span of this; the command carries what it returns.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be there.
    pub async fn submit(&self, body: &[u8], trace: impl FnOnce() -> Option<TraceContext>) -> Result<(), BrokerError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let properties =
            BasicProperties::default().with_content_type("application/json".into()).with_timestamp(now.as_secs());
        let span = self.span(COMMANDS, GENERATE_KEY, "send");
        let properties = properties.with_headers(traced(span.in_scope(trace).as_ref()));
        noted(self.queued(body, properties), span).await
    }

    /// The same with these properties.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be there.
    pub(super) async fn submit_with(&self, body: &[u8], properties: BasicProperties) -> Result<(), BrokerError> {
        let span = self.span(COMMANDS, GENERATE_KEY, "send");
        noted(self.queued(body, properties), span).await
    }

    async fn queued(&self, body: &[u8], properties: BasicProperties) -> Result<(), BrokerError> {
        routed(self.publish(COMMANDS, GENERATE_KEY, body, properties).await?)
    }

    /// Lets a command come back after a delay, as it is.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be safe; then it must not be acknowledged.
    pub async fn retry_later(&self, message: &Message, delay: Duration) -> Result<(), BrokerError> {
        let properties = carried(&message.properties);
        let queue = retry_queue(delay);
        let span = self.span("", &queue, "send");
        noted(async { routed(self.publish("", &queue, &message.body, properties).await?) }, span).await
    }

    /// Puts a command at the end of its queue, as it is.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be safe; then it must not be acknowledged.
    pub async fn hand_back(&self, message: &Message) -> Result<(), BrokerError> {
        self.submit_with(&message.body, carried(&message.properties)).await
    }

    /// Gives a command to the dead letters with a reason.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be safe; then it must not be acknowledged.
    pub async fn dead_letter(&self, message: &Message, reason: &str) -> Result<(), BrokerError> {
        let carried = carried(&message.properties);
        let mut headers = carried.headers().clone().unwrap_or_default();
        let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        headers.insert(REJECTED_AT_HEADER.into(), AMQPValue::LongString(now().into()));
        let properties = carried.with_headers(headers);
        let span = self.span(DEAD_LETTER, GENERATE_KEY, "send");
        noted(async { routed(self.publish(DEAD_LETTER, GENERATE_KEY, &message.body, properties).await?) }, span).await
    }

    /// Publishes an event, and says whether a queue took it. Of `started` and `progress` events that is not known: they count as taken.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it is not known to be safe.
    pub async fn publish_event(&self, event: &Event) -> Result<Routed, BrokerError> {
        let properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_message_id(event.id.to_string().into())
            .with_type(event.kind.as_str().into())
            .with_headers(traced(event.trace.as_ref()));
        let (key, body) = (event.routing_key(), event.body.as_bytes());
        let span = self.span(EVENTS, key, "send");
        span.record("messaging.message.id", event.id.to_string());
        let published = async {
            match event.kind {
                EventKind::Started | EventKind::Progress => {
                    confirmed(&self.watching, EVENTS, key, BasicPublishOptions::default(), body, properties).await
                }
                EventKind::Completed | EventKind::Failed => self.publish(EVENTS, key, body, properties).await,
            }
        };
        noted(published, span).await
    }
}

/// Publishes in a span.
async fn noted<T>(publishing: impl Future<Output = Result<T, BrokerError>>, span: Span) -> Result<T, BrokerError> {
    async {
        let published = publishing.await;
        if let Err(error) = &published {
            let (span, description) = (Span::current(), error.to_string());
            span.record("error.type", "broker");
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", description.chars().take(MAX_DESCRIPTION_CHARS).collect::<String>());
        }
        published
    }
    .instrument(span)
    .await
}

/// The headers of W3C Trace Context.
fn traced(trace: Option<&TraceContext>) -> FieldTable {
    let mut headers = FieldTable::default();
    if let Some(TraceContext { parent, state }) = trace {
        headers.insert("traceparent".into(), AMQPValue::LongString(parent.as_str().into()));
        if let Some(state) = state {
            headers.insert("tracestate".into(), AMQPValue::LongString(state.as_str().into()));
        }
    }
    headers
}

async fn confirmed(
    channel: &Channel,
    exchange: &str,
    key: &str,
    options: BasicPublishOptions,
    body: &[u8],
    properties: BasicProperties,
) -> Result<Routed, BrokerError> {
    let doing = "take a message";
    let properties = properties.with_delivery_mode(PERSISTENT);
    let confirmation = answered(doing, async {
        channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await
    })
    .await?;
    match confirmation {
        Confirmation::Ack(None) => Ok(Routed::Taken),
        Confirmation::Ack(Some(_)) => Ok(Routed::Unrouted),
        Confirmation::Nack(_) => Err(BrokerError { doing, cause: "it was nacked".to_owned() }),
        Confirmation::NotRequested => Err(BrokerError { doing, cause: "confirms are off".to_owned() }),
    }
}

/// What of a producer's properties goes along when its command is moved to another queue. Not its `expiration`, which would let it
/// vanish there; not its `user_id`, which the broker lets nobody else use; not the headers by which it asked for copies, nor the broker's
/// own.
pub(super) fn carried(properties: &BasicProperties) -> BasicProperties {
    let mut carried = BasicProperties::default();
    if let Some(content_type) = properties.content_type() {
        carried = carried.with_content_type(content_type.clone());
    }
    if let Some(content_encoding) = properties.content_encoding() {
        carried = carried.with_content_encoding(content_encoding.clone());
    }
    if let Some(message_id) = properties.message_id() {
        carried = carried.with_message_id(message_id.clone());
    }
    if let Some(correlation_id) = properties.correlation_id() {
        carried = carried.with_correlation_id(correlation_id.clone());
    }
    if let Some(priority) = properties.priority() {
        carried = carried.with_priority(*priority);
    }
    if let Some(timestamp) = properties.timestamp() {
        carried = carried.with_timestamp(*timestamp);
    }
    if let Some(kind) = properties.kind() {
        carried = carried.with_type(kind.clone());
    }
    if let Some(app_id) = properties.app_id() {
        carried = carried.with_app_id(app_id.clone());
    }
    if let Some(headers) = properties.headers() {
        let kept = headers.inner().iter().filter(|(name, _)| {
            let name = name.as_str();
            !matches!(name, "CC" | "BCC") && !is_the_brokers(name)
        });
        carried = carried
            .with_headers(kept.map(|(name, value)| (name.clone(), value.clone())).collect::<BTreeMap<_, _>>().into());
    }
    carried
}

/// Our own queues are bound when we connect; where one is gone, the message must stay where it is.
fn routed(routed: Routed) -> Result<(), BrokerError> {
    match routed {
        Routed::Taken => Ok(()),
        Routed::Unrouted => Err(BrokerError { doing: "take a message", cause: "no queue is bound for it".to_owned() }),
    }
}
