//! RabbitMQ: connection, topology, publishing. The only crate that names `lapin`; no type of it leaves.

mod consumer;
mod dead_letters;
mod delivery;
mod publisher;
mod topology;
mod watch;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lapin::{Channel, Connection, ConnectionProperties};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use topology::{DEAD_QUEUE, GENERATE_QUEUE};

pub use consumer::{Commands, Lost};
pub use dead_letters::{DeadLetter, DeadLetters};
pub use delivery::{AckHandle, Message, Settlement};
pub use publisher::{Publisher, Routed};
pub use topology::{CONSUMED, GENERATE_KEY, QueueMatch, QueueState, Topology};
pub use watch::{Watch, Watched};

/// The bound on connecting, and on any single answer of the broker: it answers within milliseconds, or it is in trouble.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The broker failed, while doing what.
#[derive(Debug, thiserror::Error)]
#[error("the broker cannot {doing}: {cause}")]
pub struct BrokerError {
    doing: &'static str,
    cause: String,
}

/// Bounds a wait for the broker, and names what was waited for.
async fn answered<T>(doing: &'static str, wait: impl Future<Output = lapin::Result<T>>) -> Result<T, BrokerError> {
    match tokio::time::timeout(ANSWER_TIMEOUT, wait).await {
        Ok(result) => result.map_err(|error| BrokerError { doing, cause: error.to_string() }),
        Err(_) => Err(BrokerError { doing, cause: format!("no answer within {ANSWER_TIMEOUT:?}") }),
    }
}

/// A connection to the broker with its exchanges and queues in place.
pub struct Broker {
    connection: Connection,
    /// Kept until the connection is closed: a channel that is dropped in the same moment makes lapin log an error.
    channels: Mutex<Vec<Channel>>,
    server: Server,
}

/// Where the broker is, for spans.
#[derive(Debug, Clone, Default)]
struct Server {
    host: Option<String>,
    port: Option<u16>,
}

impl Server {
    fn of(url: &str) -> Self {
        let Ok(url) = Url::parse(url) else { return Self::default() };
        let usual = if url.scheme() == "amqps" { 5671 } else { 5672 };
        Self { host: url.host_str().map(str::to_owned), port: Some(url.port().unwrap_or(usual)) }
    }
}

impl Broker {
    /// Connects, and declares the topology.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where the broker cannot be reached, or has queues of other arguments.
    pub async fn connect(url: &SecretString, topology: &Topology) -> Result<Self, BrokerError> {
        let broker = Self::reach(url).await?;
        topology.declare(&broker.channel().await?).await?;
        Ok(broker)
    }

    /// Connects, and declares nothing.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where the broker cannot be reached.
    pub async fn reach(url: &SecretString) -> Result<Self, BrokerError> {
        let properties = ConnectionProperties::default().with_connection_name("asset-worker".into());
        let connection = answered("be reached", Connection::connect(url.expose_secret(), properties)).await?;
        Ok(Self { connection, channels: Mutex::default(), server: Server::of(url.expose_secret()) })
    }

    /// What is known of the queue of commands, without making it.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where it may not be looked at.
    pub async fn generate_queue(&self) -> Result<QueueState, BrokerError> {
        topology::queue_state(&self.channel().await?, GENERATE_QUEUE).await
    }

    /// How each queue that is declared at a start compares with what is there. Makes none.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where one may not be looked at.
    pub async fn compared(&self, topology: &Topology) -> Result<Vec<(String, QueueMatch)>, BrokerError> {
        let mut compared = Vec::new();
        for (name, arguments) in topology.queues() {
            let found = topology::compared(&self.channel().await?, &name, &arguments).await?;
            compared.push((name, found));
        }
        Ok(compared)
    }

    /// A way to look at the queues of commands and of dead letters again and again.
    pub async fn gauge(&self) -> Result<Gauge, BrokerError> {
        Ok(Gauge(self.channel().await?))
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        let channel = answered("open a channel", self.connection.create_channel()).await?;
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).push(channel.clone());
        Ok(channel)
    }

    /// A publisher with channels of its own.
    pub async fn publisher(&self) -> Result<Publisher, BrokerError> {
        Publisher::open(self.channel().await?, self.channel().await?, self.server.clone()).await
    }

    /// Starts to take commands, at most `prefetch` unsettled ones at once.
    pub async fn commands(&self, prefetch: u16) -> Result<Commands, BrokerError> {
        Commands::consume(self.channel().await?, GENERATE_QUEUE, prefetch).await
    }

    /// Starts to read, one by one, the messages that were dead-lettered.
    pub async fn dead_lettered(&self) -> Result<Commands, BrokerError> {
        Commands::consume(self.channel().await?, topology::FALLEN_QUEUE, 1).await
    }

    /// Takes hold of the dead letters.
    pub async fn dead_letters(&self) -> Result<DeadLetters, BrokerError> {
        DeadLetters::hold(self.channel().await?, self.publisher().await?).await
    }

    /// Starts to watch the events of every job.
    pub async fn watch(&self) -> Result<Watch, BrokerError> {
        Watch::start(self.channel().await?).await
    }

    /// Closes the connection in order.
    pub async fn close(self) {
        // It is closed either way; a broker that does not answer is not waited for.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.connection.close(200, "done".into())).await;
    }
}

/// Looks at queues, on a channel of its own.
pub struct Gauge(Channel);

impl Gauge {
    /// The queues of commands and of dead letters.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; the gauge is of no use any more.
    pub async fn read(&self) -> Result<(QueueState, QueueState), BrokerError> {
        Ok((topology::queue_state(&self.0, GENERATE_QUEUE).await?, topology::queue_state(&self.0, DEAD_QUEUE).await?))
    }
}
