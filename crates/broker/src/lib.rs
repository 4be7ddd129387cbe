//! RabbitMQ client of the worker: connection, topology, consuming, publishing and dead letters.
//!
//! The only crate that uses `lapin`; its public API contains no lapin type.

mod command_stream;
mod confirms;
mod dead_letters;
mod event_watcher;
mod headers;
mod mailbox;
mod message;
mod properties;
mod publisher;
mod topology;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::{Channel, Connection, ConnectionProperties};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::OnceCell;
use url::Url;

use confirms::Confirms;
use topology::{DEAD_LETTER_QUEUE, GENERATE_QUEUE};

pub use command_stream::{CommandStream, ConnectionLost};
pub use confirms::{PublishOutcome, PublisherState};
pub use dead_letters::{DeadLetter, DeadLetterQueue, DeadLetters};
pub use event_watcher::{EventWatcher, WatchedMessage};
pub use mailbox::{SharedExchange, SharedExchangeKind};
pub use message::{AckHandle, BrokerDeath, Message, Settlement};
pub use publisher::{Publisher, SubmittedCommand};
pub use topology::{CONSUME_DESTINATION, GENERATE_KEY, QueueMatch, QueueState, Topology};

/// Timeout for connecting and for each response of the broker, which normally takes milliseconds.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval of the heartbeats, unless the URL sets one: a broker that has vanished is noticed after two of them. The
/// broker would propose 60 seconds. Source: RabbitMQ's guide "Detecting Dead TCP Connections with Heartbeats".
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Adds the interval of the heartbeats to an AMQP URL that sets none.
fn add_heartbeat(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else { return url.to_owned() };
    if parsed.query_pairs().any(|(name, _)| name == "heartbeat") {
        return url.to_owned();
    }
    parsed.query_pairs_mut().append_pair("heartbeat", &HEARTBEAT.as_secs().to_string());
    parsed.into()
}

/// Connects; `name` is shown in the broker's list of connections.
async fn open_connection(url: &SecretString, name: &str) -> Result<Connection, BrokerError> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let with_heartbeat = add_heartbeat(url.expose_secret());
    with_timeout("connect", Connection::connect(&with_heartbeat, properties)).await
}

/// An operation on the broker failed or timed out.
#[derive(Debug, thiserror::Error)]
#[error("broker: cannot {operation}: {cause}")]
pub struct BrokerError {
    operation: &'static str,
    cause: String,
}

/// Awaits an operation for at most [`RESPONSE_TIMEOUT`] and names it in the error.
async fn with_timeout<T>(doing: &'static str, wait: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    match tokio::time::timeout(RESPONSE_TIMEOUT, wait).await {
        Ok(result) => result.map_err(|error| BrokerError { operation: doing, cause: error.to_string() }),
        Err(_) => Err(BrokerError { operation: doing, cause: format!("no response within {RESPONSE_TIMEOUT:?}") }),
    }
}

/// Access to RabbitMQ, over two connections: one that consumes, and one that publishes.
///
/// The broker blocks a connection that publishes while it is low on memory or disk space. Acknowledgements and
/// heartbeats of the other one go on. Source: RabbitMQ's guide "Memory and Disk Alarms".
pub struct Broker {
    /// Consumes, acknowledges, declares and inspects.
    connection: Arc<Connection>,
    /// Opened for the first publisher.
    publish_connection: OnceCell<Arc<Connection>>,
    url: SecretString,
    /// Kept until the connections are closed: lapin logs an error if a channel is dropped at the same moment.
    channels: Mutex<Vec<Channel>>,
    server: ServerAddress,
}

/// Host and port of the broker, for span attributes.
#[derive(Debug, Clone, Default)]
struct ServerAddress {
    host: Option<String>,
    port: Option<u16>,
}

impl ServerAddress {
    fn from_url(url: &str) -> Self {
        let Ok(url) = Url::parse(url) else { return Self::default() };
        let default_port = if url.scheme() == "amqps" { 5671 } else { 5672 };
        Self { host: url.host_str().map(str::to_owned), port: Some(url.port().unwrap_or(default_port)) }
    }
}

impl Broker {
    /// Connects and declares the topology.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker cannot be reached, or a queue exists with other arguments.
    pub async fn connect(url: &SecretString, topology: &Topology) -> Result<Self, BrokerError> {
        let broker = Self::connect_without_topology(url).await?;
        topology.declare(&broker.create_channel().await?).await?;
        Ok(broker)
    }

    /// Connects without declaring anything.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker cannot be reached.
    pub async fn connect_without_topology(url: &SecretString) -> Result<Self, BrokerError> {
        Ok(Self {
            connection: Arc::new(open_connection(url, "asset-worker").await?),
            publish_connection: OnceCell::new(),
            url: url.clone(),
            channels: Mutex::default(),
            server: ServerAddress::from_url(url.expose_secret()),
        })
    }

    /// The state of the command queue. Does not declare it.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the queue cannot be inspected; a missing queue is [`QueueState::Missing`].
    pub async fn read_command_queue_state(&self) -> Result<QueueState, BrokerError> {
        topology::queue_state(&self.create_channel().await?, GENERATE_QUEUE).await
    }

    /// Compares each queue of the topology with the existing one. Creates none.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if a queue cannot be inspected.
    pub async fn compare_topology(&self, topology: &Topology) -> Result<Vec<(String, QueueMatch)>, BrokerError> {
        let mut matches = Vec::new();
        for (name, arguments) in topology.queues() {
            let found = topology::compare_queue(&self.create_channel().await?, &name, &arguments).await?;
            matches.push((name, found));
        }
        Ok(matches)
    }

    /// Creates a monitor that reads the state of the command queue and the dead-letter queue repeatedly.
    pub async fn queue_monitor(&self) -> Result<QueueMonitor, BrokerError> {
        Ok(QueueMonitor(self.create_channel().await?))
    }

    /// Opens a channel on the connection that consumes.
    async fn create_channel(&self) -> Result<Channel, BrokerError> {
        self.open_channel(&self.connection).await
    }

    async fn open_channel(&self, connection: &Connection) -> Result<Channel, BrokerError> {
        let channel = with_timeout("open a channel", connection.create_channel()).await?;
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).push(channel.clone());
        Ok(channel)
    }

    /// Creates a publisher with channels of its own, on the connection that publishes. A message waits for at most
    /// `blocked_limit` while the broker blocks that connection.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if the broker cannot be reached.
    pub async fn create_publisher(&self, blocked_limit: Duration) -> Result<Publisher, BrokerError> {
        let open = async || open_connection(&self.url, "asset-worker publishing").await.map(Arc::new);
        let connection = self.publish_connection.get_or_try_init(open).await?;
        let open_channel = || self.open_channel(connection);
        let channels = [open_channel().await?, open_channel().await?, open_channel().await?];
        let confirms = Confirms::new(connection.status().clone(), blocked_limit);
        Publisher::open(connection.clone(), channels, confirms, self.server.clone()).await
    }

    /// Opens the stream of commands, which has not started.
    pub async fn open_command_stream(&self) -> Result<CommandStream, BrokerError> {
        Ok(CommandStream::new(self.create_channel().await?, GENERATE_QUEUE))
    }

    /// Starts to consume copies of all dead-lettered messages, with a prefetch count of one.
    ///
    /// [`Message::broker_death`] tells which of them the broker itself dead-lettered.
    pub async fn consume_delivery_limit_queue(&self) -> Result<CommandStream, BrokerError> {
        let mut stream = CommandStream::new(self.create_channel().await?, topology::DELIVERY_LIMIT_QUEUE);
        stream.start(1).await?;
        Ok(stream)
    }

    /// Starts to consume requests to cancel jobs, with a prefetch count of 20.
    pub async fn consume_cancel_queue(&self) -> Result<CommandStream, BrokerError> {
        let mut stream = CommandStream::new(self.create_channel().await?, topology::CANCEL_QUEUE);
        stream.start(20).await?;
        Ok(stream)
    }

    /// Fetches the oldest dead letters, until 256 MiB are held, and holds them unacknowledged, see [`DeadLetters`].
    pub async fn hold_dead_letters(&self) -> Result<DeadLetters, BrokerError> {
        self.dead_letter_queue().hold(usize::MAX, dead_letters::MAX_HELD_BYTES).await
    }

    /// The queue of dead letters, to be read several times over this connection.
    pub fn dead_letter_queue(&self) -> DeadLetterQueue {
        DeadLetterQueue::new(self.connection.clone())
    }

    /// Starts to watch the events of all jobs and the dead-lettered commands. Meanwhile no terminal event counts as one that
    /// no queue is bound for.
    pub async fn watch_events(&self) -> Result<EventWatcher, BrokerError> {
        EventWatcher::start(self.create_channel().await?, event_watcher::ALL).await
    }

    /// Starts to watch the events of all jobs except the terminal ones, which must reach a queue of another program.
    pub async fn watch_progress(&self) -> Result<EventWatcher, BrokerError> {
        EventWatcher::start(self.create_channel().await?, event_watcher::PROGRESS).await
    }

    /// Closes the connections, waiting at most 2 s for the broker.
    pub async fn close(self) {
        let publishing = self.publish_connection.get().map(AsRef::as_ref);
        let closing = [Some(self.connection.as_ref()), publishing].into_iter().flatten();
        let closing = closing.map(|connection| connection.close(200, "done".into()));
        // The result is ignored: the connections end either way.
        let _ = tokio::time::timeout(Duration::from_secs(2), join_all(closing)).await;
    }
}

/// Reads the state of queues on a channel of its own.
pub struct QueueMonitor(Channel);

impl QueueMonitor {
    /// Reads the state of the command queue and of the dead-letter queue.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; the monitor cannot be used afterwards.
    pub async fn read(&self) -> Result<(QueueState, QueueState), BrokerError> {
        Ok((
            topology::queue_state(&self.0, GENERATE_QUEUE).await?,
            topology::queue_state(&self.0, DEAD_LETTER_QUEUE).await?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeat_is_added_unless_the_url_sets_one() {
        assert_eq!(add_heartbeat("amqp://u:p@host:1/%2f"), "amqp://u:p@host:1/%2f?heartbeat=15");
        assert_eq!(add_heartbeat("amqp://host/v?frame_max=64"), "amqp://host/v?frame_max=64&heartbeat=15");
        assert_eq!(add_heartbeat("amqp://host/v?heartbeat=5"), "amqp://host/v?heartbeat=5");
    }
}
