//! The consumer of commands, which follows the account gate.

use broker::{BrokerError, CommandStream, ConnectionLost, Message};

use crate::gate::Intake;

/// The consumer of commands, which is cancelled while the account gate is closed.
pub(crate) struct CommandConsumer {
    stream: CommandStream,
    /// The prefetch count while the gate is open.
    prefetch: u16,
    state: ConsumerState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ConsumerState {
    Consuming(Intake),
    /// Cancelled; messages that the broker had sent before are still delivered.
    Cancelled,
    Stopped,
}

impl CommandConsumer {
    /// Creates a consumer from a stream that has not started.
    pub(crate) fn new(stream: CommandStream, prefetch: u16) -> Self {
        Self { stream, prefetch, state: ConsumerState::Stopped }
    }

    pub(crate) fn is_consuming(&self) -> bool {
        matches!(self.state, ConsumerState::Consuming(_))
    }

    /// Whether it has not started, or has delivered its last message since it was cancelled.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state == ConsumerState::Stopped
    }

    /// Which commands it takes.
    pub(crate) fn intake(&self) -> Intake {
        match self.state {
            ConsumerState::Consuming(intake) => intake,
            ConsumerState::Cancelled | ConsumerState::Stopped => Intake::Closed,
        }
    }

    pub(crate) async fn cancel(&mut self) {
        if self.is_consuming() {
            self.stream.stop().await;
            self.state = ConsumerState::Cancelled;
        }
    }

    pub(crate) async fn start(&mut self, intake: Intake) -> Result<(), BrokerError> {
        let prefetch = match intake {
            Intake::All => self.prefetch,
            Intake::One(_) => 1,
            Intake::Closed => return Ok(()),
        };
        self.stream.start(prefetch).await?;
        self.state = ConsumerState::Consuming(intake);
        Ok(())
    }

    /// Waits for the next message; `None` once a cancelled consumer has ended. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, ConnectionLost> {
        match self.state {
            ConsumerState::Stopped => std::future::pending().await,
            ConsumerState::Consuming(_) => self.stream.next().await.map(Some),
            ConsumerState::Cancelled => {
                // If the connection was lost, the next operation notices it.
                let next = self.stream.next().await.ok();
                if next.is_none() {
                    self.state = ConsumerState::Stopped;
                }
                Ok(next)
            }
        }
    }
}
