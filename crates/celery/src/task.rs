//! A message that asks for a task, and the command that it becomes.

use domain::strict_json;
use serde_json::{Map, Value};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::body::Body;
use crate::envelope::{Envelope, format_time, shorten, text};
use crate::reply::Reply;

/// The names of the positional arguments.
const POSITIONAL: [&str; 3] = ["project_id", "image_descriptions", "config"];

/// A task that asks for images.
#[derive(Debug)]
pub struct Task {
    /// The command in JSON, not validated.
    pub command: Map<String, Value>,
    /// When its job is due: its `eta`.
    pub due_at: Option<OffsetDateTime>,
    /// Who is told about its job.
    pub reply: Reply,
}

/// A message that is not accepted.
#[derive(Debug)]
pub struct Refused {
    /// Field, value and what is allowed.
    pub reason: String,
    /// Who is told about it.
    pub reply: Box<Reply>,
    /// The command in JSON, as far as it was read.
    pub command: Map<String, Value>,
}

impl Task {
    /// Reads the task of a message; `None` if the message is not of protocol 2. `accepted` are names of tasks.
    pub fn read(envelope: &Envelope<'_>, accepted: &[String]) -> Option<Result<Self, Refused>> {
        if !envelope.headers.contains_key("task") {
            return None;
        }
        let header = |name| text(envelope.headers, name).unwrap_or_default();
        let mut reply = Reply::new(envelope, header("task"), header("id"));
        let mut command = Map::new();
        Some(match read(envelope, accepted, &mut reply, &mut command) {
            Ok(due_at) => Ok(Self { command, due_at, reply }),
            Err(reason) => Err(Refused { reason, reply: Box::new(reply), command }),
        })
    }
}

impl Refused {
    /// Recognises a message of protocol 1, which has the name and the id of the task in its body.
    pub fn of_protocol_1(envelope: &Envelope<'_>) -> Option<Self> {
        let body = strict_json::parse(envelope.body).ok()?;
        let is_task = ["task", "id", "args", "kwargs"].iter().all(|key| body.get(key).is_some());
        is_task.then(|| {
            let text = |name: &str| body[name].as_str().unwrap_or_default();
            let reason = "body: Celery's protocol 1 is not allowed; protocol 2, so task_protocol=2".to_owned();
            let reply = Box::new(Reply::new(envelope, text("task"), text("id")));
            Self { reason, reply, command: Map::new() }
        })
    }
}

/// Reads a task into the given reply and command, and returns when it is due.
fn read(
    envelope: &Envelope<'_>,
    accepted: &[String],
    reply: &mut Reply,
    command: &mut Map<String, Value>,
) -> Result<Option<OffsetDateTime>, String> {
    let body = Body::parse(envelope);
    if let Ok(body) = &body {
        // First, so that the tasks linked to a failure are told of each reason below.
        reply.set_errbacks(&body.embed)?;
    }
    let name = text(envelope.headers, "task").unwrap_or_default();
    if !accepted.iter().any(|one| one == name) {
        let name = shorten(name);
        return Err(match accepted {
            [] => format!("task: {name:?} is not allowed; Celery's messages are accepted only if CELERY_TASKS is set"),
            names => format!("task: {name:?} is not allowed; {}", names.join(", ")),
        });
    }
    let Body { args, kwargs, embed } = body?;
    *command = arguments(args, kwargs)?;
    let id = text(envelope.headers, "id").filter(|id| !id.is_empty()).ok_or("id: missing; the id of the task")?;
    command.entry("job_id").or_insert_with(|| id.into());
    reply.set_successors(&embed)?;
    if let Some(expires) = time(envelope.headers, "expires")? {
        set_expiry(command, expires);
    }
    time(envelope.headers, "eta")
}

/// The keys of the command: named arguments, positional ones, or one positional argument that has them all.
fn arguments(args: Vec<Value>, kwargs: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut args = args.into_iter().peekable();
    let mut command = match args.next_if(Value::is_object) {
        Some(Value::Object(command)) => command,
        _ => Map::new(),
    };
    let is_whole = !command.is_empty();
    let mut names = POSITIONAL.iter();
    for value in args {
        let name = names.next().filter(|_| !is_whole);
        let name = name.ok_or("args: too many; project_id, image_descriptions and config, or one object with them")?;
        command.insert((*name).to_owned(), value);
    }
    for (name, value) in kwargs {
        if command.contains_key(&name) {
            return Err(format!("{}: given twice, in args and in kwargs", shorten(&name)));
        }
        command.insert(name, value);
    }
    Ok(command)
}

/// Sets the earlier one of two times at which the job expires.
fn set_expiry(command: &mut Map<String, Value>, expires: OffsetDateTime) {
    let config = command.entry("config").or_insert(Value::Null);
    if config.is_null() {
        *config = Map::new().into();
    }
    // Anything else is refused when the command is validated.
    let Value::Object(config) = config else { return };
    let own = config.get("expires_at").and_then(Value::as_str).and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    if config.get("expires_at").is_none_or(Value::is_null) || own.is_some_and(|own| expires < own) {
        config.insert("expires_at".to_owned(), format_time(expires).into());
    }
}

/// The time of a header in ISO 8601; without an offset it is in UTC.
fn time(headers: &Map<String, Value>, name: &str) -> Result<Option<OffsetDateTime>, String> {
    let value = match headers.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let parsed = value.as_str().and_then(|text| {
        let with_offset = OffsetDateTime::parse(text, &Rfc3339);
        with_offset.or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339)).ok()
    });
    let refusal = || {
        let shown = shorten(&value.to_string());
        format!("{name}: {shown} is not allowed; a time such as \"2026-12-01T12:00:00+00:00\"")
    };
    let in_utc = parsed.and_then(|time| time.checked_to_offset(UtcOffset::UTC));
    in_utc.filter(|time| (0..=9_999).contains(&time.year())).map(Some).ok_or_else(refusal)
}
