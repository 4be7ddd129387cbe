//! Publishing on a channel with publisher confirms, within time limits.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, ConnectionStatus};
use tokio::time::{Instant, sleep, timeout};

use super::{BrokerError, RESPONSE_TIMEOUT};

/// Delivery mode of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;
/// Interval at which a wait looks whether the connection is blocked.
const BLOCKED_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Time limit for the broker's response to the closing of a channel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a published message was routed to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishOutcome {
    /// At least one queue received it.
    Routed,
    /// No queue is bound for its routing key.
    Unrouted,
}

/// Whether a [`Publisher`](super::Publisher) can publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublisherState {
    /// It can.
    Ready,
    /// The broker blocks the connection because it is low on memory or disk space; messages wait.
    Blocked,
    /// It cannot any more: the connection was lost, a channel was closed, or a message was not confirmed in time. Holds
    /// the cause.
    Failed(String),
}

/// Waits for confirms, and remembers the first failure after which a channel cannot be used.
#[derive(Clone)]
pub(super) struct Confirms {
    connection: ConnectionStatus,
    /// How long a message waits while the broker blocks the connection.
    blocked_limit: Duration,
    failure: Arc<OnceLock<String>>,
}

impl Confirms {
    /// Waits for confirms on this connection.
    pub(super) fn new(connection: ConnectionStatus, blocked_limit: Duration) -> Self {
        Self { connection, blocked_limit, failure: Arc::default() }
    }

    pub(super) fn state(&self) -> PublisherState {
        let Self { connection, failure, .. } = self;
        match failure.get() {
            Some(cause) => PublisherState::Failed(cause.clone()),
            None if !connection.connected() => PublisherState::Failed("the publishing connection was lost".to_owned()),
            None if connection.blocked() => PublisherState::Blocked,
            None => PublisherState::Ready,
        }
    }

    /// Awaits a step of publishing for at most [`RESPONSE_TIMEOUT`]. The time for which the connection is blocked has
    /// its own limit.
    ///
    /// # Errors
    ///
    /// Which limit was exceeded.
    pub(super) async fn within_limits<T>(&self, step: impl Future<Output = T>) -> Result<T, String> {
        let is_blocked = || self.connection.blocked();
        // A message that follows a failed one does not wait for the alarm again.
        let blocked_limit = if self.failure.get().is_some() { Duration::ZERO } else { self.blocked_limit };
        within_limits(is_blocked, blocked_limit, step).await
    }

    /// Publishes a message and waits for its confirm. If that of a mandatory message does not come in time, its channel
    /// is closed: when the message is returned later, it would be taken for another one.
    pub(super) async fn publish(
        &self,
        channel: &Channel,
        message: Publication<'_>,
    ) -> Result<PublishOutcome, BrokerError> {
        let failed = |cause: String| BrokerError { operation: "publish a message", cause };
        let Publication { exchange, key, mandatory, body, properties } = message;
        let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        let properties =
            if properties.delivery_mode().is_some() { properties } else { properties.with_delivery_mode(PERSISTENT) };
        // Boxed: lapin's future is large.
        let confirming = Box::pin(async {
            channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await
        });
        let confirmation = match self.within_limits(confirming).await {
            Ok(Ok(confirmation)) => confirmation,
            Ok(Err(error)) => {
                if !channel.status().connected() {
                    let _ = self.failure.set(format!("a publishing channel was closed: {error}"));
                }
                return Err(failed(error.to_string()));
            }
            Err(cause) if !mandatory => return Err(failed(cause)),
            Err(cause) => {
                let _ = self.failure.set(format!("a message was not confirmed: {cause}"));
                // The result is ignored: lapin refuses further messages on this channel from the call on.
                let _ = timeout(CLOSE_TIMEOUT, channel.close(200, "a message was not confirmed".into())).await;
                return Err(failed(cause));
            }
        };
        match confirmation {
            Confirmation::Ack(None) => Ok(PublishOutcome::Routed),
            Confirmation::Ack(Some(_)) => Ok(PublishOutcome::Unrouted),
            Confirmation::Nack(_) => Err(failed("nacked by the broker".to_owned())),
            Confirmation::NotRequested => Err(failed("publisher confirms are off".to_owned())),
        }
    }

    /// Publishes mandatory messages, each with a message id, and waits for all their confirms. Returns the ids of those
    /// that no queue received. The broker returns a message with any confirm of the channel, so they are told by their id.
    pub(super) async fn publish_all<'a>(
        &self,
        channel: &Channel,
        exchange: &str,
        messages: impl Iterator<Item = (&'a str, &'a [u8], BasicProperties)>,
    ) -> Result<HashSet<String>, BrokerError> {
        let failed = |cause: String| BrokerError { operation: "publish messages", cause };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let publishing = Box::pin(async {
            let mut confirms = Vec::new();
            for (key, body, properties) in messages {
                let properties = properties.with_delivery_mode(PERSISTENT);
                confirms.push(channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?);
            }
            try_join_all(confirms).await
        });
        let confirmations = match self.within_limits(publishing).await {
            Ok(Ok(confirmations)) => confirmations,
            Ok(Err(error)) => return Err(self.close(channel, error.to_string()).await),
            Err(cause) => return Err(self.close(channel, cause).await),
        };
        let mut returned = HashSet::new();
        for confirmation in confirmations {
            match confirmation {
                Confirmation::Ack(message) => {
                    let id = message.and_then(|message| message.delivery.properties.message_id().clone());
                    returned.extend(id.map(|id| id.to_string()));
                }
                Confirmation::Nack(_) => return Err(failed("nacked by the broker".to_owned())),
                Confirmation::NotRequested => return Err(failed("publisher confirms are off".to_owned())),
            }
        }
        Ok(returned)
    }

    /// Closes a channel after a failure: messages that are returned later would be taken for others.
    async fn close(&self, channel: &Channel, cause: String) -> BrokerError {
        let _ = self.failure.set(format!("messages were not confirmed: {cause}"));
        // The result is ignored: lapin refuses further messages on this channel from the call on.
        let _ = timeout(CLOSE_TIMEOUT, channel.close(200, "messages were not confirmed".into())).await;
        BrokerError { operation: "publish messages", cause }
    }

    /// Returns once the connection is blocked.
    pub(super) async fn until_blocked(&self) {
        while !self.connection.blocked() {
            sleep(BLOCKED_POLL_INTERVAL).await;
        }
    }
}

/// See [`Confirms::within_limits`].
async fn within_limits<T>(
    is_blocked: impl Fn() -> bool,
    blocked_limit: Duration,
    step: impl Future<Output = T>,
) -> Result<T, String> {
    let mut step = pin!(step);
    let blocked_until = Instant::now() + blocked_limit;
    let mut deadline = Instant::now() + RESPONSE_TIMEOUT;
    loop {
        if let Ok(output) = timeout(BLOCKED_POLL_INTERVAL, &mut step).await {
            return Ok(output);
        }
        let now = Instant::now();
        if is_blocked() && now < blocked_until {
            deadline = now + RESPONSE_TIMEOUT;
        } else if now >= deadline {
            let alarm =
                if is_blocked() { "; the broker blocks publishing: it is low on memory or disk space" } else { "" };
            return Err(format!("no response within {RESPONSE_TIMEOUT:?}{alarm}"));
        }
    }
}

/// A message to be published.
pub(super) struct Publication<'a> {
    pub(super) exchange: &'a str,
    pub(super) key: &'a str,
    /// Whether the broker says that no queue received it.
    pub(super) mandatory: bool,
    pub(super) body: &'a [u8],
    pub(super) properties: BasicProperties,
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_while_blocked_has_its_own_limit() {
        let minutes = Duration::from_mins;
        let elapsed = async |is_blocked: &dyn Fn() -> bool| {
            let started = Instant::now();
            let error = within_limits(is_blocked, minutes(10), pending::<()>()).await.expect_err("no response");
            (started.elapsed(), error)
        };
        assert_eq!(elapsed(&|| false).await, (RESPONSE_TIMEOUT, "no response within 15s".to_owned()));
        let (waited, error) = elapsed(&|| true).await;
        assert_eq!(waited + BLOCKED_POLL_INTERVAL, minutes(10) + RESPONSE_TIMEOUT);
        assert!(error.ends_with("it is low on memory or disk space"), "{error}");
        // The limit of the response begins again when the connection is unblocked.
        let response = sleep(minutes(5) + RESPONSE_TIMEOUT / 2);
        let started = Instant::now();
        within_limits(|| started.elapsed() < minutes(5), minutes(10), response).await.expect("a response in time");
    }
}
