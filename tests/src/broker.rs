//! The broker as producers and consumers see it.

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::Value;
use tokio::time::timeout;

use crate::LIMIT;

const DEAD_QUEUE: &str = "assets.generate.dead";

/// A client like any other: it publishes commands and looks at queues.
pub struct Producer {
    _connection: Connection,
    channel: Channel,
}

/// A message as it was received.
#[derive(Debug, Clone)]
pub struct Message {
    /// As it came.
    pub body: Vec<u8>,
    /// Its routing key.
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
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// A header that holds text.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            _ => None,
        }
    }

    /// The content type.
    pub fn content_type(&self) -> Option<String> {
        self.properties.content_type().as_ref().map(ToString::to_string)
    }

    /// Its AMQP properties.
    pub fn properties(&self) -> &BasicProperties {
        &self.properties
    }

    /// Whether it survives a restart of the broker.
    pub fn is_persistent(&self) -> bool {
        *self.properties.delivery_mode() == Some(2)
    }

    /// The CloudEvents type.
    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap_or_default().to_owned()
    }
}

impl Producer {
    /// Connects.
    pub async fn connect(amqp_url: &str) -> Result<Self> {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { _connection: connection, channel })
    }

    /// Publishes a command, as a pipeline does.
    pub async fn publish(&self, command: &Value) -> Result<()> {
        self.publish_bytes(command.to_string().as_bytes(), None).await
    }

    /// Publishes any bytes as a command.
    pub async fn publish_bytes(&self, body: &[u8], trace_parent: Option<&str>) -> Result<()> {
        let headers = trace_parent.map(|trace_parent| ("traceparent", trace_parent));
        self.publish_with_headers(body, headers).await
    }

    /// Publishes a command as part of a trace.
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
        self.publish_with(body, BasicProperties::default().with_headers(table)).await
    }

    /// Publishes any bytes as a command, with these properties and those that every command has.
    pub async fn publish_with(&self, body: &[u8], properties: BasicProperties) -> Result<()> {
        self.publish_raw(body, properties.with_content_type("application/json".into()).with_delivery_mode(2)).await
    }

    /// Publishes any bytes as a command, with these properties and no others.
    pub async fn publish_raw(&self, body: &[u8], properties: BasicProperties) -> Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmation = self
            .channel
            .basic_publish("assets.commands".into(), "generate".into(), options, body, properties)
            .await?
            .await?;
        match confirmation {
            lapin::Confirmation::Ack(None) => Ok(()),
            other => bail!("the command was not taken: {other:?}"),
        }
    }

    /// Declares a durable quorum queue without any other argument.
    pub async fn declare_plainly(&self, name: &str) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        self.channel.queue_declare(name.into(), options, arguments).await?;
        Ok(())
    }

    /// Hears every event from now on.
    pub async fn events(&self) -> Result<Events> {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare("".into(), options, FieldTable::default()).await?;
        let name = queue.name().clone();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(name.clone(), "assets.events".into(), "#".into(), bind, none).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer = self.channel.basic_consume(name, "".into(), options, FieldTable::default()).await?;
        Ok(Events { consumer })
    }

    /// Lets every event from now on be kept in a queue of this name, whatever becomes of this connection.
    pub async fn keep_events(&self, name: &str) -> Result<()> {
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, quorum).await?;
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        Ok(self.channel.queue_bind(name.into(), "assets.events".into(), "#".into(), bind, none).await?)
    }

    /// Lets events of a kind go to a queue that has room for one message, and fills it.
    pub async fn keep_one_event(&self, name: &str, kind: &str) -> Result<()> {
        let mut bounded = FieldTable::default();
        bounded.insert("x-max-length".into(), AMQPValue::LongInt(1));
        bounded.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        self.channel.queue_declare(name.into(), QueueDeclareOptions::default(), bounded).await?;
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(name.into(), "assets.events".into(), kind.into(), bind, none).await?;
        let options = BasicPublishOptions::default();
        let published =
            self.channel.basic_publish("".into(), name.into(), options, b"in the way", BasicProperties::default());
        published.await?.await?;
        Ok(())
    }

    /// Takes all messages off a queue.
    pub async fn take_all(&self, queue: &str) -> Result<Vec<Message>> {
        let mut taken = Vec::new();
        while let Some(message) = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await? {
            message.delivery.ack(BasicAckOptions::default()).await?;
            taken.push(message.delivery.into());
        }
        Ok(taken)
    }

    /// How many messages of a queue are ready.
    pub async fn ready(&self, queue: &str) -> Result<u32> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        Ok(self.channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count())
    }

    /// Takes the next dead letter off its queue.
    pub async fn dead_letter(&self) -> Result<Message> {
        dev_services::wait::until("a dead letter", LIMIT, async || {
            let got = self.channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default()).await;
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

/// The events of a world.
pub struct Events {
    consumer: Consumer,
}

impl Events {
    /// The next event.
    pub async fn next(&mut self) -> Result<Message> {
        let delivery = timeout(LIMIT, self.consumer.next()).await.context("no event came")?;
        Ok(delivery.context("the consumer ended")??.into())
    }

    /// All events up to the next one of this type, such as `completed`; a terminal one of the other type is an error.
    pub async fn until(&mut self, kind: &str) -> Result<Vec<Message>> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await?;
            let found = event.kind();
            let name = found.strip_prefix("assets.generation.").unwrap_or(&found);
            let (found, terminal) = (name == kind, matches!(name, "completed" | "failed"));
            events.push(event);
            if found {
                return Ok(events);
            }
            if terminal {
                bail!("the job ended otherwise than {kind}: {}", events[events.len() - 1].json());
            }
        }
    }

    /// The `data` of the next terminal event of this type.
    pub async fn data_of(&mut self, kind: &str) -> Result<Value> {
        let events = self.until(kind).await?;
        Ok(events[events.len() - 1].json()["data"].clone())
    }
}
