//! Who is told about a job, and what: its state, its result, and the tasks that follow it.
//!
//! Source: `RPCBackend.store_result` in `celery/backends/rpc.py`, `mark_as_failure` in `celery/backends/base.py`,
//! `build_tracer` in `celery/app/trace.py`.

use domain::event::{Event, EventKind};
use domain::failure::JobFailureCode;
use domain::outgoing::OutgoingMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::envelope::{Envelope, format_time, text};
use crate::link::{CHORD, Link, Parent, find_results, read_chain, read_links};

/// Who is told about the job of one task. Stored with the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The name of the task.
    pub task: String,
    /// The id of the task.
    pub id: String,
    /// The priority of its message.
    pub priority: Option<u8>,
    /// The id of the first task of its chain or group.
    pub root_id: String,
    parent_id: Option<String>,
    group: Option<String>,
    /// The queue that receives its results; `None` if its sender asked for none.
    result_queue: Option<String>,
    correlation_id: String,
    on_success: Vec<Link>,
    on_failure: Vec<Link>,
    /// Ids and reply queues of the later tasks in its chain, which fail with it.
    later: Vec<(String, String)>,
}

impl Reply {
    /// The reply for the message of a task, without links.
    pub(crate) fn new(envelope: &Envelope<'_>, task: &str, id: &str) -> Self {
        let header = |name: &str| text(envelope.headers, name).map(clean);
        let is_ignored = envelope.headers.get("ignore_result") == Some(&Value::Bool(true));
        Self {
            task: clean(task),
            id: clean(id),
            priority: envelope.priority,
            root_id: header("root_id").unwrap_or_else(|| clean(id)),
            parent_id: header("parent_id"),
            group: header("group"),
            result_queue: envelope.reply_to.filter(|queue| !queue.is_empty() && !is_ignored).map(str::to_owned),
            correlation_id: envelope.correlation_id.map_or_else(|| clean(id), str::to_owned),
            on_success: Vec::new(),
            on_failure: Vec::new(),
            later: Vec::new(),
        }
    }

    /// Reads what is told about a failure from the third part of the body.
    pub(crate) fn set_errbacks(&mut self, embed: &Map<String, Value>) -> Result<(), String> {
        let mut later = Vec::new();
        let chain = embed.get("chain").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        find_results(chain, &mut later);
        check_count(later.len())?;
        self.later = later;
        let errbacks = read_links(embed.get("errbacks"), "errbacks")?;
        check_count(errbacks.len())?;
        self.on_failure = errbacks;
        Ok(())
    }

    /// Reads what follows a success from the third part of the body.
    pub(crate) fn set_successors(&mut self, embed: &Map<String, Value>) -> Result<(), String> {
        if embed.get("chord").is_some_and(|chord| !chord.is_null()) {
            return Err(CHORD.to_owned());
        }
        let mut successors = read_links(embed.get("callbacks"), "callbacks")?;
        successors.extend(read_chain(embed.get("chain"))?);
        check_count(successors.len())?;
        self.on_success = successors;
        Ok(())
    }

    /// Restores a reply from the row of its job.
    pub fn from_stored(stored: &Value) -> Option<Self> {
        Self::deserialize(stored).ok()
    }

    /// The form in which it is stored with its job.
    pub fn to_stored(&self) -> Value {
        serde_json::to_value(self).expect("a reply is serialisable")
    }

    /// The state of the task after an event that is not the last one. `node` is the name of the worker.
    pub fn state(&self, event: &Event, node: &str) -> Option<OutgoingMessage> {
        let data = event_data(event);
        match event.kind {
            EventKind::Started => {
                self.result("STARTED", &json!({"pid": std::process::id(), "hostname": node}), &event_time(event))
            }
            EventKind::Progress => {
                let keys = ["index", "status", "code", "total", "succeeded", "failed", "from_cache"];
                let counts: Map<String, Value> =
                    keys.iter().filter_map(|key| Some(((*key).to_owned(), data.get(key)?.clone()))).collect();
                self.result("PROGRESS", &counts.into(), &event_time(event))
            }
            EventKind::Completed | EventKind::Failed => None,
        }
    }

    /// The messages for the terminal event of the job: linked tasks, then results. The same event always gives the same
    /// ids; times that are relative in a signature count from `now`.
    pub fn end(&self, event: &Event, now: OffsetDateTime) -> Vec<OutgoingMessage> {
        let data = event_data(event);
        let time = event_time(event);
        if event.kind == EventKind::Completed {
            let linked = self.link_messages(&self.on_success, &data, now);
            return linked.chain(self.result("SUCCESS", &data, &time)).collect();
        }
        let field = |name: &str| data["error"][name].as_str().unwrap_or_default();
        self.failure(field("code"), field("message"), now)
    }

    /// The messages for a message that is rejected, or for a job that failed.
    pub fn failure(&self, code: &str, message: &str, now: OffsetDateTime) -> Vec<OutgoingMessage> {
        // Celery publishes no errbacks of revoked tasks.
        if code == JobFailureCode::Cancelled.as_str() {
            return self.revoked("revoked", now).into_iter().collect();
        }
        if code == JobFailureCode::Expired.as_str() {
            return self.revoked("expired", now).into_iter().collect();
        }
        // A name that is no exception class raises SecurityError in the caller.
        let error = json!({"exc_type": "RuntimeError", "exc_message": [code, message], "exc_module": "builtins"});
        let time = format_time(now);
        let id = Value::from(self.id.as_str());
        let linked = self.link_messages(&self.on_failure, &id, now);
        let own = self.result("FAILURE", &error, &time);
        // As Celery does, so that a caller that waits for the last task of the chain is told.
        let later = self.later.iter().map(|(id, queue)| {
            let later = Self { id: id.clone(), correlation_id: id.clone(), ..self.clone() };
            result_message(queue, &later, "FAILURE", &error, &time)
        });
        linked.chain(own).chain(later).collect()
    }

    fn revoked(&self, reason: &str, now: OffsetDateTime) -> Option<OutgoingMessage> {
        let error = json!({"exc_type": "TaskRevokedError", "exc_message": [reason], "exc_module": "celery.exceptions"});
        self.result("REVOKED", &error, &format_time(now))
    }

    fn link_messages<'a>(
        &'a self,
        links: &'a [Link],
        argument: &'a Value,
        now: OffsetDateTime,
    ) -> impl Iterator<Item = OutgoingMessage> + 'a {
        let parent = Parent { id: &self.id, root_id: &self.root_id };
        links.iter().enumerate().map(move |(position, link)| link.message(parent, position, argument, now))
    }

    fn result(&self, status: &str, result: &Value, time: &str) -> Option<OutgoingMessage> {
        Some(result_message(self.result_queue.as_deref()?, self, status, result, time))
    }
}

/// The most tasks that are linked to one task in one way.
const MAX_LINKS: usize = 100;

fn check_count(count: usize) -> Result<(), String> {
    if count > MAX_LINKS { Err(format!("{count} linked tasks are not allowed; at most {MAX_LINKS}")) } else { Ok(()) }
}

/// A text of a header that can be stored and sent: without NUL, and of at most 255 characters.
fn clean(text: &str) -> String {
    text.chars().filter(|character| *character != '\0').take(255).collect()
}

/// A message of the result backend `rpc://`: on the default exchange, to the queue of the caller.
fn result_message(queue: &str, task: &Reply, status: &str, result: &Value, time: &str) -> OutgoingMessage {
    OutgoingMessage {
        exchange: String::new(),
        routing_key: queue.to_owned(),
        kept_if_unrouted: false,
        correlation_id: task.correlation_id.clone(),
        reply_to: None,
        priority: None,
        headers: Map::new(),
        body: json!({
            "task_id": task.id,
            "status": status,
            "result": result,
            "traceback": null,
            "children": [],
            "date_done": time,
            "group_id": task.group,
            "parent_id": task.parent_id,
        }),
    }
}

/// The `data` of an event.
fn event_data(event: &Event) -> Value {
    let mut envelope: Value = serde_json::from_str(&event.body).unwrap_or_default();
    envelope["data"].take()
}

/// The time of an event.
fn event_time(event: &Event) -> String {
    let envelope: Value = serde_json::from_str(&event.body).unwrap_or_default();
    envelope["time"].as_str().unwrap_or_default().replace('Z', "+00:00")
}
