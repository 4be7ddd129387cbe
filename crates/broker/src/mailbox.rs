//! A queue for messages to this process only.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::command_stream::CommandStream;
use super::{Broker, BrokerError, with_timeout};

/// An exchange that other programs use too.
#[derive(Debug, Clone, Copy)]
pub struct SharedExchange {
    /// Its name.
    pub name: &'static str,
    /// Whether it passes each message to all queues, or by the topic of the routing key; otherwise by the exact one.
    pub kind: SharedExchangeKind,
    /// Whether it survives a restart of the broker.
    pub is_durable: bool,
}

/// To which queues an exchange passes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedExchangeKind {
    /// To all that are bound.
    Fanout,
    /// By the exact routing key.
    Direct,
    /// By a pattern of the routing key.
    Topic,
}

impl Broker {
    /// Declares shared exchanges and a queue for this process, which is bound to the first of them, and consumes from it.
    /// The queue is exclusive, and deleted with the connection.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] if an exchange exists with other properties, or another connection has the queue.
    pub async fn open_mailbox(&self, queue: &str, exchanges: &[SharedExchange]) -> Result<CommandStream, BrokerError> {
        let channel = self.create_channel().await?;
        let table = FieldTable::default;
        for SharedExchange { name, kind, is_durable } in exchanges {
            let kind = match kind {
                SharedExchangeKind::Fanout => ExchangeKind::Fanout,
                SharedExchangeKind::Direct => ExchangeKind::Direct,
                SharedExchangeKind::Topic => ExchangeKind::Topic,
            };
            let options = ExchangeDeclareOptions { durable: *is_durable, ..ExchangeDeclareOptions::default() };
            let declaring = channel.exchange_declare((*name).into(), kind, options, table());
            with_timeout("declare a shared exchange", declaring).await?;
        }
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        with_timeout("declare a mailbox", channel.queue_declare(queue.into(), options, table())).await?;
        if let Some(exchange) = exchanges.first() {
            let binding =
                channel.queue_bind(queue.into(), exchange.name.into(), "".into(), QueueBindOptions::default(), table());
            with_timeout("bind a mailbox", binding).await?;
        }
        let mut stream = CommandStream::new(channel, queue);
        stream.start(20).await?;
        Ok(stream)
    }
}
