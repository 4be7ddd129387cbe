//! What a message asks for: the worker's own command, or a task of Celery, which becomes a command.

use broker::Message;
use celery::{Envelope, Refused, Reply, Task};
use domain::command::{Command, InvalidCommand};
use domain::rules::Rules;
use serde_json::{Map, Value};
use time::OffsetDateTime;

/// A message with a valid command.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) command: Command,
    /// When its job is due; `None`: now.
    pub(crate) due_at: Option<OffsetDateTime>,
    /// Who is told about the job beside the consumers of its events.
    pub(crate) reply: Option<Reply>,
}

/// A message without a valid command.
#[derive(Debug)]
pub(crate) struct Rejected {
    pub(crate) invalid: InvalidCommand,
    /// Who is told that it is rejected.
    pub(crate) reply: Option<Box<Reply>>,
}

/// Parses a message. `celery_tasks` are the names of tasks that are accepted.
///
/// # Errors
///
/// [`Rejected`] lists every rule that the body or the properties violate.
pub(crate) fn parse(message: &Message, rules: &Rules, celery_tasks: &[String]) -> Result<Incoming, Rejected> {
    let headers = message.headers();
    let envelope = Envelope {
        headers: &headers,
        content_type: message.content_type(),
        content_encoding: message.content_encoding(),
        reply_to: message.reply_to(),
        correlation_id: message.correlation_id(),
        priority: message.priority(),
        body: &message.body,
    };
    match Task::read(&envelope, celery_tasks) {
        None => match parse_own(message, rules) {
            Ok(command) => Ok(Incoming { command, due_at: None, reply: None }),
            Err(invalid) => Err(match Refused::of_protocol_1(&envelope) {
                None => Rejected { invalid, reply: None },
                Some(refused) => reject(refused, rules),
            }),
        },
        Some(Ok(Task { command, due_at, reply })) => match parse_object(command, rules) {
            Ok(command) => Ok(Incoming { command, due_at, reply: Some(reply) }),
            Err(invalid) => Err(Rejected { invalid, reply: Some(Box::new(reply)) }),
        },
        Some(Err(refused)) => Err(reject(refused, rules)),
    }
}

fn reject(refused: Refused, rules: &Rules) -> Rejected {
    let Refused { reason, reply, command } = refused;
    let key = match parse_object(command, rules) {
        Ok(command) => Some(command.key()),
        Err(invalid) => invalid.key,
    };
    Rejected { invalid: InvalidCommand { violations: vec![reason], key }, reply: Some(reply) }
}

fn parse_object(command: Map<String, Value>, rules: &Rules) -> Result<Command, InvalidCommand> {
    Command::parse(Value::Object(command).to_string().as_bytes(), rules)
}

fn parse_own(message: &Message, rules: &Rules) -> Result<Command, InvalidCommand> {
    let parsed = Command::parse(&message.body, rules);
    let Some(violation) = message.unsupported_encoding() else { return parsed };
    let (mut violations, key) = match parsed {
        Ok(command) => (Vec::new(), Some(command.key())),
        Err(InvalidCommand { violations, key }) => (violations, key),
    };
    violations.insert(0, violation);
    Err(InvalidCommand { violations, key })
}
