//! RabbitMQ client for tests: publishes commands, inspects queues and receives events.

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::Value;
use tokio::time::timeout;

use crate::WAIT_TIMEOUT;

const DEAD_LETTER_QUEUE: &str = "assets.generate.dead";

/// RabbitMQ client that publishes commands, declares queues and reads them.
pub struct BrokerClient {
    _connection: Connection,
    channel: Channel,
}

/// A received message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Body, unchanged.
    pub body: Vec<u8>,
    /// Routing key.
    pub routing_key: String,
    properties: BasicProperties,
}

impl From<Delivery> for Message {
    fn from(delivery: Delivery) -> Self {
        Self {
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties.clone(),
            body: delivery.data,
        }
    }
}

impl Message {
    /// Parses the body as JSON; panics if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// Returns a header that holds text; `None` if it is missing or of another type.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            _ => None,
        }
    }

    /// Content type.
    pub fn content_type(&self) -> Option<String> {
        self.properties.content_type().as_ref().map(ToString::to_string)
    }

    /// AMQP properties.
    pub fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// Returns whether the message is persistent (delivery mode 2).
    pub fn is_persistent(&self) -> bool {
        *self.properties.delivery_mode() == Some(2)
    }

    /// CloudEvents `type`; empty if it is missing.
    pub fn event_type(&self) -> String {
        self.json()["type"].as_str().unwrap_or_default().to_owned()
    }
}

impl BrokerClient {
    /// The channel, for operations that have no method here.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Connects to the broker and enables publisher confirms.
    pub async fn connect(amqp_url: &str) -> Result<Self> {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel })
    }

    /// Publishes a command as a pipeline does: JSON, persistent, with a publisher confirm.
    pub async fn publish(&self, command: &Value) -> Result<()> {
        self.publish_bytes(command.to_string().as_bytes(), None).await
    }

    /// Publishes bytes as a command, optionally with the header `traceparent`.
    pub async fn publish_bytes(&self, body: &[u8], trace_parent: Option<&str>) -> Result<()> {
        let headers = trace_parent.map(|trace_parent| ("traceparent", trace_parent));
        self.publish_with_headers(body, headers).await
    }

    /// Publishes a command with the headers `traceparent` and `tracestate`.
    pub async fn publish_traced(&self, command: &Value, trace_parent: &str, trace_state: &str) -> Result<()> {
        let headers = [("traceparent", trace_parent), ("tracestate", trace_state)];
        self.publish_with_headers(command.to_string().as_bytes(), headers).await
    }

    async fn publish_with_headers<'a>(
        &self,
        body: &[u8],
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<()> {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        self.publish_with_properties(body, BasicProperties::default().with_headers(table)).await
    }

    /// Publishes bytes as a command with these properties, JSON content type and delivery mode 2.
    pub async fn publish_with_properties(&self, body: &[u8], properties: BasicProperties) -> Result<()> {
        self.publish_raw(body, properties.with_content_type("application/json".into()).with_delivery_mode(2)).await
    }

    /// Puts a dead letter on its queue, as a worker does.
    pub async fn publish_dead_letter(&self, body: &[u8]) -> Result<()> {
        let mut headers = FieldTable::default();
        headers.insert("x-rejected-reason".into(), AMQPValue::LongString("invalid_request: test".into()));
        let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
        let (exchange, options) = ("assets.dead-letter".into(), BasicPublishOptions::default());
        self.channel.basic_publish(exchange, "generate".into(), options, body, properties).await?.await?;
        Ok(())
    }

    /// Publishes bytes as a command with exactly these properties. An unroutable or nacked message is an error.
    pub async fn publish_raw(&self, body: &[u8], properties: BasicProperties) -> Result<()> {
        self.publish_with_key("generate", body, properties).await
    }

    /// Publishes a Celery task with these headers and reply queue. `body` is the list of args, kwargs and what follows.
    pub async fn publish_task(&self, headers: &Value, reply_to: &str, body: &Value) -> Result<()> {
        let mut table = FieldTable::default();
        for (name, value) in headers.as_object().into_iter().flatten() {
            let value = value.as_str().map_or(AMQPValue::Void, |text| AMQPValue::LongString(text.into()));
            table.insert(name.as_str().into(), value);
        }
        let id = headers["id"].as_str().unwrap_or_default();
        let properties = BasicProperties::default()
            .with_content_encoding("utf-8".into())
            .with_correlation_id(id.into())
            .with_reply_to(reply_to.into())
            .with_headers(table);
        self.publish_with_properties(body.to_string().as_bytes(), properties).await
    }

    /// Publishes bytes as a request to cancel a job.
    pub async fn publish_cancel(&self, body: &[u8]) -> Result<()> {
        let properties = BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(2);
        self.publish_with_key("cancel", body, properties).await
    }

    async fn publish_with_key(&self, key: &str, body: &[u8], properties: BasicProperties) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange = "assets.commands".into();
        let confirmation = self.channel.basic_publish(exchange, key.into(), options, body, properties).await?.await?;
        match confirmation {
            lapin::Confirmation::Ack(None) => Ok(()),
            other => bail!("the broker did not accept the command: {other:?}"),
        }
    }

    /// Declares a durable quorum queue without any other argument.
    pub async fn declare_plain_queue(&self, name: &str) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        self.channel.queue_declare(name.into(), options, arguments).await?;
        Ok(())
    }

    /// Deletes a queue with its messages.
    pub async fn delete_queue(&self, name: &str) -> Result<()> {
        self.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// Subscribes to all events published from now on.
    pub async fn subscribe_to_events(&self) -> Result<EventStream> {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare("".into(), options, FieldTable::default()).await?;
        let name = queue.name().clone();
        let (bind, no_arguments) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(name.clone(), "assets.events".into(), "#".into(), bind, no_arguments).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = self.channel.basic_consume(name, "".into(), options, FieldTable::default()).await?;
        Ok(EventStream { consumer })
    }

    /// Binds a durable queue of this name to all events; it outlives this connection.
    pub async fn bind_event_queue(&self, name: &str) -> Result<()> {
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, quorum).await?;
        let (bind, no_arguments) = (QueueBindOptions::default(), FieldTable::default());
        Ok(self.channel.queue_bind(name.into(), "assets.events".into(), "#".into(), bind, no_arguments).await?)
    }

    /// Binds a durable classic queue of this name to events of this type.
    pub async fn bind_classic_queue(&self, name: &str, kind: &str) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, FieldTable::default()).await?;
        let (bind, no_arguments) = (QueueBindOptions::default(), FieldTable::default());
        Ok(self.channel.queue_bind(name.into(), "assets.events".into(), kind.into(), bind, no_arguments).await?)
    }

    /// Binds a queue with room for one message to events of this type, and fills it. Further messages are nacked.
    pub async fn bind_full_queue(&self, name: &str, kind: &str) -> Result<()> {
        let mut bounded = FieldTable::default();
        bounded.insert("x-max-length".into(), AMQPValue::LongInt(1));
        bounded.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        self.channel.queue_declare(name.into(), QueueDeclareOptions::default(), bounded).await?;
        let (bind, no_arguments) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(name.into(), "assets.events".into(), kind.into(), bind, no_arguments).await?;
        let options = BasicPublishOptions::default();
        let published =
            self.channel.basic_publish("".into(), name.into(), options, b"in the way", BasicProperties::default());
        published.await?.await?;
        Ok(())
    }

    /// Takes all messages off a queue and acknowledges them.
    pub async fn drain_queue(&self, queue: &str) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        while let Some(message) = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await? {
            message.delivery.ack(BasicAckOptions::default()).await?;
            messages.push(message.delivery.into());
        }
        Ok(messages)
    }

    /// Waits until a queue has this many messages, and takes them off it.
    pub async fn take_messages(&self, queue: &str, expected: u32) -> Result<Vec<Message>> {
        let ready = async || (self.ready_count(queue).await.ok()? >= expected).then_some(());
        dev_services::wait::wait_until(&format!("{expected} messages on {queue}"), WAIT_TIMEOUT, ready).await?;
        self.drain_queue(queue).await
    }

    /// Returns how many messages of a queue are ready.
    pub async fn ready_count(&self, queue: &str) -> Result<u32> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        Ok(self.channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
    }

    /// Waits until this many commands wait on the command queue.
    pub async fn wait_for_waiting_commands(&self, expected: u32) -> Result<()> {
        dev_services::wait::wait_until("commands on the queue", WAIT_TIMEOUT, async || {
            (self.ready_count("assets.generate").await.ok()? == expected).then_some(())
        })
        .await
    }

    /// Waits for the next dead letter, takes it off its queue and acknowledges it.
    pub async fn take_dead_letter(&self) -> Result<Message> {
        dev_services::wait::wait_until("a dead letter", WAIT_TIMEOUT, async || {
            let got = self.channel.basic_get(DEAD_LETTER_QUEUE.into(), BasicGetOptions::default()).await;
            match got {
                Err(error) => Some(Err(error.into())),
                Ok(None) => None,
                Ok(Some(message)) => {
                    let acked = message.delivery.ack(BasicAckOptions::default()).await;
                    Some(acked.map(|_| Message::from(message.delivery)).map_err(anyhow::Error::from))
                }
            }
        })
        .await?
    }
}

/// Stream of the events of a test environment.
pub struct EventStream {
    consumer: Consumer,
}

impl EventStream {
    /// Waits for the next event.
    pub async fn next(&mut self) -> Result<Message> {
        let delivery = timeout(WAIT_TIMEOUT, self.consumer.next()).await.context("no event arrived in time")?;
        Ok(delivery.context("the event consumer ended")??.into())
    }

    /// Returns all events up to the next one of this type, such as `completed`. The other terminal event is an error.
    pub async fn wait_for(&mut self, expected: &str) -> Result<Vec<Message>> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await?;
            let found = event.event_type();
            let name = found.strip_prefix("assets.generation.").unwrap_or(&found);
            let (found, terminal) = (name == expected, matches!(name, "completed" | "failed"));
            events.push(event);
            if found {
                return Ok(events);
            }
            if terminal {
                bail!("the job did not end as {expected}: {}", events[events.len() - 1].json());
            }
        }
    }

    /// Waits for the terminal event of this type and returns its `data`.
    pub async fn wait_for_data(&mut self, expected: &str) -> Result<Value> {
        let events = self.wait_for(expected).await?;
        Ok(events[events.len() - 1].json()["data"].clone())
    }
}
