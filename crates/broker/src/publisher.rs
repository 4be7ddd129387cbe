//! Publishing, always with publisher confirms: after `Ok` the message is on the broker's disk.

use std::sync::Arc;
use std::time::Duration;

use domain::event::{Event, EventKind};
use domain::outgoing::OutgoingMessage;
use domain::trace::TraceContext;
use lapin::options::ConfirmSelectOptions;
use lapin::types::AMQPValue;
use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::Mutex;
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span, warn};
use uuid::Uuid;

use super::confirms::{Confirms, Publication, PublishOutcome, PublisherState};
use super::message::{Message, REASON_HEADER, REJECTED_AT_HEADER, now_rfc3339};
use super::properties::{
    TRANSIENT, command_properties, event_properties, forwarded_properties, is_within_limits, message_properties,
};
use super::topology::{
    CANCEL_KEY, COMMANDS_EXCHANGE, DEAD_LETTER_EXCHANGE, EVENTS_EXCHANGE, GENERATE_KEY, retry_queue_name,
};
use super::{BrokerError, ServerAddress, with_timeout};

/// Maximum length of `otel.status_description`.
const MAX_DESCRIPTION_CHARS: usize = 300;
/// Maximum length of a rejection reason: one that lists every violation of a large command would be unreadable.
const MAX_REASON_CHARS: usize = 2_000;

/// Publishes on a connection of its own, which the broker may block. Clones share it.
#[derive(Clone)]
pub struct Publisher {
    /// For commands and dead letters.
    commands: Arc<MandatoryChannel>,
    /// For terminal events. A queue bound to them that confirms slowly does not hold up commands.
    terminal_events: Arc<MandatoryChannel>,
    /// For `started` and `progress` events, which may be lost.
    progress_events: Channel,
    /// For channels that the broker may close.
    connection: Arc<Connection>,
    confirms: Confirms,
    server: ServerAddress,
}

/// A channel for messages that must reach a queue. lapin attaches a returned message to the next confirm of the
/// channel, even if that confirms another message, so only one message at a time is published.
struct MandatoryChannel(Mutex<Channel>);

impl Publisher {
    /// Enables publisher confirms on the channels: for commands, terminal events and progress events.
    pub(super) async fn open(
        connection: Arc<Connection>,
        channels: [Channel; 3],
        confirms: Confirms,
        server: ServerAddress,
    ) -> Result<Self, BrokerError> {
        for channel in &channels {
            with_timeout("enable publisher confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        }
        let [commands, terminal_events, progress_events] = channels;
        let mandatory = |channel| Arc::new(MandatoryChannel(Mutex::new(channel)));
        let (commands, terminal_events) = (mandatory(commands), mandatory(terminal_events));
        Ok(Self { commands, terminal_events, progress_events, connection, confirms, server })
    }

    /// Whether messages can be published.
    pub fn state(&self) -> PublisherState {
        self.confirms.state()
    }

    /// Host and port of the broker, for spans.
    pub fn server_address(&self) -> (Option<&str>, Option<u16>) {
        (self.server.host.as_deref(), self.server.port)
    }

    /// A producer span by OpenTelemetry's semantic conventions for RabbitMQ.
    fn publish_span(&self, exchange: &str, key: &str, operation: &'static str) -> Span {
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

    /// Publishes a message as mandatory and reports whether a queue received it.
    async fn publish(
        &self,
        channel: &MandatoryChannel,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<PublishOutcome, BrokerError> {
        let turn = self.confirms.within_limits(channel.0.lock()).await;
        let channel = turn.map_err(|cause| BrokerError { operation: "publish a message", cause })?;
        self.confirms.publish(&channel, Publication { exchange, key, mandatory: true, body, properties }).await
    }

    /// Publishes a message that must reach a queue, in a span.
    async fn publish_to_queue(
        &self,
        exchange: &str,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
        span: Span,
    ) -> Result<(), BrokerError> {
        let publishing = self.publish(&self.commands, exchange, key, body, properties);
        publish_in_span(async { require_routed(publishing.await?) }, span).await
    }

    /// Publishes the command of a job. `trace` is called in the producer span; its result goes into the command's headers.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if it is not confirmed that the command is on its queue.
    pub async fn submit(
        &self,
        job_id: Uuid,
        body: &[u8],
        priority: Option<u8>,
        trace: impl FnOnce() -> Option<TraceContext>,
    ) -> Result<(), BrokerError> {
        let span = self.publish_span(COMMANDS_EXCHANGE, GENERATE_KEY, "send");
        let properties = command_properties(job_id, priority, span.in_scope(trace).as_ref());
        self.publish_to_queue(COMMANDS_EXCHANGE, GENERATE_KEY, body, properties, span).await
    }

    /// Publishes commands, all before the first confirm is awaited.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if it is not confirmed that all of them are on their queue.
    pub async fn submit_all(&self, commands: &[SubmittedCommand<'_>]) -> Result<(), BrokerError> {
        let messages = commands.iter().map(|command| {
            let properties = command_properties(command.job_id, command.priority, command.trace);
            (GENERATE_KEY, command.body.as_bytes(), properties)
        });
        let turn = self.confirms.within_limits(self.commands.0.lock()).await;
        let channel = turn.map_err(|cause| BrokerError { operation: "publish a message", cause })?;
        let returned = self.confirms.publish_all(&channel, COMMANDS_EXCHANGE, messages).await?;
        require_routed(if returned.is_empty() { PublishOutcome::Routed } else { PublishOutcome::Unrouted })
    }

    /// Publishes a command, or with the key of cancellations a request to cancel, with the given properties.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if it is not confirmed that the command is on its queue.
    pub(super) async fn submit_with_properties(
        &self,
        key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), BrokerError> {
        let span = self.publish_span(COMMANDS_EXCHANGE, key, "send");
        self.publish_to_queue(COMMANDS_EXCHANGE, key, body, properties, span).await
    }

    /// Publishes a command unchanged to the retry queue with this delay.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker has not confirmed it; the message must then not be acknowledged.
    pub async fn retry_later(&self, message: &Message, delay: Duration) -> Result<(), BrokerError> {
        let properties = forwarded_properties(&message.properties);
        let queue = retry_queue_name(delay);
        let span = self.publish_span("", &queue, "send");
        self.publish_to_queue("", &queue, &message.body, properties, span).await
    }

    /// Publishes a command unchanged to the end of its queue.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker has not confirmed it; the message must then not be acknowledged.
    pub async fn requeue_at_end(&self, message: &Message) -> Result<(), BrokerError> {
        self.submit_with_properties(GENERATE_KEY, &message.body, forwarded_properties(&message.properties)).await
    }

    /// Publishes a command to the dead-letter exchange with a reason in its headers.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker has not confirmed it; the message must then not be acknowledged.
    pub async fn dead_letter(&self, message: &Message, reason: &str) -> Result<(), BrokerError> {
        self.dead_letter_with_key(message, GENERATE_KEY, reason).await
    }

    /// As [`dead_letter`](Self::dead_letter), for a request to cancel a job: its routing key is kept.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker has not confirmed it; the message must then not be acknowledged.
    pub async fn dead_letter_cancel(&self, message: &Message, reason: &str) -> Result<(), BrokerError> {
        self.dead_letter_with_key(message, CANCEL_KEY, reason).await
    }

    async fn dead_letter_with_key(&self, message: &Message, key: &str, reason: &str) -> Result<(), BrokerError> {
        let forwarded = forwarded_properties(&message.properties);
        let mut headers = forwarded.headers().clone().unwrap_or_default();
        let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        headers.insert(REJECTED_AT_HEADER.into(), AMQPValue::LongString(now_rfc3339().into()));
        let properties = forwarded.with_headers(headers);
        let span = self.publish_span(DEAD_LETTER_EXCHANGE, key, "send");
        self.publish_to_queue(DEAD_LETTER_EXCHANGE, key, &message.body, properties, span).await
    }

    /// Publishes terminal events, all before the first confirm is awaited, and reports for each whether a queue received
    /// it.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if an event is not confirmed; any of them may have been published.
    pub async fn publish_terminal_events(&self, events: &[&Event]) -> Result<Vec<PublishOutcome>, BrokerError> {
        let messages = events.iter().map(|event| (event.routing_key(), event.body.as_bytes(), event_properties(event)));
        let turn = self.confirms.within_limits(self.terminal_events.0.lock()).await;
        let channel = turn.map_err(|cause| BrokerError { operation: "publish a message", cause })?;
        let returned = self.confirms.publish_all(&channel, EVENTS_EXCHANGE, messages).await?;
        let outcome = |event: &&Event| {
            let is_returned = returned.contains(&event.id.to_string());
            if is_returned { PublishOutcome::Unrouted } else { PublishOutcome::Routed }
        };
        Ok(events.iter().map(outcome).collect())
    }

    /// Publishes a message for one receiver and reports whether a queue received it. An exchange that does not exist
    /// counts as one without queues. A message that is not kept is transient.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker has not confirmed the message.
    pub async fn publish_message(&self, message: &OutgoingMessage) -> Result<PublishOutcome, BrokerError> {
        let OutgoingMessage { exchange, routing_key: key, .. } = message;
        if !is_within_limits(message) {
            warn!(exchange, "a message exceeds the limits of AMQP for names and headers; it cannot be published");
            return Ok(PublishOutcome::Unrouted);
        }
        let span = self.publish_span(exchange, key, "send");
        let body = message.body.to_string();
        let publishing = async {
            let properties = message_properties(message);
            if exchange.is_empty() {
                return self.publish(&self.terminal_events, exchange, key, body.as_bytes(), properties).await;
            }
            let message = Publication { exchange, key, mandatory: true, body: body.as_bytes(), properties };
            self.publish_to_foreign_exchange(message).await
        };
        publish_in_span(publishing, span).await
    }

    /// Publishes to an exchange that is not declared here, on a channel of its own: the broker closes it if the exchange
    /// does not exist or may not be written to.
    async fn publish_to_foreign_exchange(&self, message: Publication<'_>) -> Result<PublishOutcome, BrokerError> {
        let channel = with_timeout("open a channel", self.connection.create_channel()).await?;
        with_timeout("enable publisher confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let exchange = message.exchange;
        let published =
            Confirms::new(self.connection.status().clone(), Duration::ZERO).publish(&channel, message).await;
        let was_closed = !channel.status().connected() && self.connection.status().connected();
        match published {
            Err(error) if was_closed => {
                warn!(exchange, %error, "the broker refused a message; its exchange counts as one without queues");
                Ok(PublishOutcome::Unrouted)
            }
            published => {
                let _ = with_timeout("close a channel", channel.close(200, "done".into())).await;
                published
            }
        }
    }

    /// Publishes a message that may be lost to an existing exchange, unless the broker blocks the connection.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker has not confirmed the message.
    pub async fn publish_transient(&self, message: &OutgoingMessage) -> Result<(), BrokerError> {
        let OutgoingMessage { exchange, routing_key: key, .. } = message;
        if !is_within_limits(message) {
            return Ok(());
        }
        let (body, properties) = (message.body.to_string(), message_properties(message).with_delivery_mode(TRANSIENT));
        let message = Publication { exchange, key, mandatory: false, body: body.as_bytes(), properties };
        tokio::select! {
            biased;
            () = self.confirms.until_blocked() => Ok(()),
            published = self.confirms.publish(&self.progress_events, message) => published.map(drop),
        }
    }

    /// Publishes an event and reports whether a queue received it.
    ///
    /// For `started` and `progress` events this is not known: the result is always [`PublishOutcome::Routed`]. They are
    /// dropped while the broker blocks the connection.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker has not confirmed the event.
    pub async fn publish_event(&self, event: &Event) -> Result<PublishOutcome, BrokerError> {
        let properties = event_properties(event);
        let (key, body) = (event.routing_key(), event.body.as_bytes());
        let span = self.publish_span(EVENTS_EXCHANGE, key, "send");
        span.record("messaging.message.id", event.id.to_string());
        let published = async {
            match event.kind {
                EventKind::Started | EventKind::Progress => {
                    let message = Publication { exchange: EVENTS_EXCHANGE, key, mandatory: false, body, properties };
                    tokio::select! {
                        biased;
                        () = self.confirms.until_blocked() => Ok(PublishOutcome::Routed),
                        published = self.confirms.publish(&self.progress_events, message) => published,
                    }
                }
                EventKind::Completed | EventKind::Failed => {
                    self.publish(&self.terminal_events, EVENTS_EXCHANGE, key, body, properties).await
                }
            }
        };
        publish_in_span(published, span).await
    }
}

/// One of several commands that are published together.
#[derive(Debug)]
pub struct SubmittedCommand<'a> {
    /// The id of its job.
    pub job_id: Uuid,
    /// The command as JSON.
    pub body: &'a str,
    /// The priority of its message.
    pub priority: Option<u8>,
    /// The trace context for its headers.
    pub trace: Option<&'a TraceContext>,
}

/// Publishes in a span and records an error on it.
async fn publish_in_span<T>(
    publishing: impl Future<Output = Result<T, BrokerError>>,
    span: Span,
) -> Result<T, BrokerError> {
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

/// Turns an unrouted message into an error.
///
/// The queues are bound when the worker connects. If one is missing, the original message must not be acknowledged.
fn require_routed(routed: PublishOutcome) -> Result<(), BrokerError> {
    match routed {
        PublishOutcome::Routed => Ok(()),
        PublishOutcome::Unrouted => Err(BrokerError {
            operation: "publish a message",
            cause: "no queue is bound for its routing key".to_owned(),
        }),
    }
}
