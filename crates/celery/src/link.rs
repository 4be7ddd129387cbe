//! Tasks that follow a task: callbacks, errbacks, and the next ones of its chain.
//!
//! Source: `Signature.apply_async`, `group` and `_chain` in `celery/canvas.py`; `as_task_v2` in `celery/app/amqp.py`.

use domain::outgoing::OutgoingMessage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::body::unwrap_typed;
use crate::envelope::{format_time, shorten};

/// The queue of a signature that names none: Celery's default for `task_default_queue`.
const DEFAULT_QUEUE: &str = "celery";

/// The longest name that AMQP allows, of a queue for example.
const MAX_NAME_BYTES: usize = 255;

/// A task that is published when another one has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// Its signature.
    signature: Value,
    /// The tasks that follow it; the last one is the next.
    chain: Vec<Value>,
}

/// The task that a linked one follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parent<'a> {
    pub(crate) id: &'a str,
    /// The first task of its chain or group.
    pub(crate) root_id: &'a str,
}

/// Reads the tasks to publish from a list of signatures, such as callbacks.
pub(crate) fn read_links(list: Option<&Value>, name: &str) -> Result<Vec<Link>, String> {
    let mut links = Vec::new();
    for signature in signatures(list, name)? {
        expand(signature, Vec::new(), &mut links)?;
    }
    Ok(links)
}

/// Reads the next tasks of a chain, whose last signature is the next one.
pub(crate) fn read_chain(list: Option<&Value>) -> Result<Vec<Link>, String> {
    let mut links = Vec::new();
    if let [rest @ .., next] = signatures(list, "chain")? {
        expand(next, rest.to_vec(), &mut links)?;
    }
    Ok(links)
}

fn signatures<'a>(list: Option<&'a Value>, name: &str) -> Result<&'a [Value], String> {
    match list {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(signatures)) => Ok(signatures),
        Some(_) => Err(format!("{name}: not allowed; a list of signatures")),
    }
}

/// Adds the tasks that a signature consists of and that can be published at once.
fn expand(signature: &Value, mut chain: Vec<Value>, links: &mut Vec<Link>) -> Result<(), String> {
    let name = signature["task"].as_str().ok_or("a linked signature has no task")?;
    let options = &signature["options"];
    let tasks = || signature["kwargs"]["tasks"].as_array().cloned().unwrap_or_default();
    match name {
        "celery.chord" => Err(CHORD.to_owned()),
        // A group with a successor is a chord.
        "celery.group" if !chain.is_empty() => Err(CHORD.to_owned()),
        "celery.group" => (0..).zip(tasks()).try_for_each(|(index, mut task)| {
            extend_option(&mut task, "link_error", &options["link_error"]);
            if task["options"]["group_id"].is_null() && options["task_id"].is_string() {
                set_option(&mut task, "group_id", options["task_id"].clone());
                set_option(&mut task, "group_index", Value::from(index));
            }
            expand(&task, Vec::new(), links)
        }),
        "celery.chain" => {
            let mut tasks = tasks();
            for task in &mut tasks {
                extend_option(task, "link_error", &options["link_error"]);
            }
            if let Some(last) = tasks.last_mut() {
                extend_option(last, "link", &options["link"]);
            }
            let Some((first, later)) = tasks.split_first_mut() else { return Ok(()) };
            if signature["immutable"] == true && first.is_object() {
                first["immutable"] = true.into();
            }
            chain.extend(later.iter().rev().cloned());
            expand(first, chain, links)
        }
        name => {
            if !options["chord"].is_null() || chain.iter().any(|next| next["task"] == "celery.chord") {
                return Err(CHORD.to_owned());
            }
            let link = Link { signature: signature.clone(), chain };
            let (exchange, routing_key) = route(options);
            let ids = ["task_id", "reply_to"].map(|name| options[name].as_str().unwrap_or_default().to_owned());
            if [exchange, routing_key].iter().chain(&ids).any(|name| name.len() > MAX_NAME_BYTES) {
                return Err(format!("options of the linked task {:?}: a name of more than 255 bytes", shorten(name)));
            }
            if !matches!(signature["args"], Value::Array(_) | Value::Null) {
                return Err(format!("args of the linked task {:?}: not allowed; a list", shorten(name)));
            }
            links.push(link);
            Ok(())
        }
    }
}

/// Sets an option of a signature that is an object.
fn set_option(signature: &mut Value, name: &str, value: Value) {
    let Value::Object(signature) = signature else { return };
    let options = signature.entry("options").or_insert(Value::Null);
    if options.is_null() {
        *options = Map::new().into();
    }
    if let Value::Object(options) = options {
        options.insert(name.to_owned(), value);
    }
}

/// Adds signatures to an option that holds one of them or a list.
fn extend_option(signature: &mut Value, name: &str, added: &Value) {
    if let Value::Array(added) = list(added) {
        let Value::Array(mut all) = list(&signature["options"][name]) else {
            return set_option(signature, name, added.into());
        };
        all.extend(added);
        set_option(signature, name, all.into());
    }
}

/// An option that holds one signature or a list of them as a list; null if it is not set.
fn list(option: &Value) -> Value {
    match option {
        Value::Null | Value::Array(_) => option.clone(),
        one => json!([one]),
    }
}

/// Why a chord is refused.
pub(crate) const CHORD: &str =
    "chord: not allowed; its counting needs a result backend of its own. A group without a successor is allowed";

/// Ids and reply queues of all tasks in a chain, in groups too: none of them runs after a failure.
pub(crate) fn find_results(signatures: &[Value], found: &mut Vec<(String, String)>) {
    for signature in signatures {
        match signature["kwargs"]["tasks"].as_array() {
            Some(tasks) if matches!(signature["task"].as_str(), Some("celery.group" | "celery.chain")) => {
                find_results(tasks, found);
            }
            _ => {
                let option = |name: &str| signature["options"][name].as_str().map(str::to_owned);
                found.extend(option("task_id").zip(option("reply_to")));
            }
        }
    }
}

impl Link {
    /// The message that starts the task, with `argument` first unless its signature is immutable.
    ///
    /// `position` distinguishes the linked tasks of one parent: a task without an id gets the same one each time.
    pub(crate) fn message(
        &self,
        parent: Parent<'_>,
        position: usize,
        argument: &Value,
        now: OffsetDateTime,
    ) -> OutgoingMessage {
        let Self { signature, chain } = self;
        let options = &signature["options"];
        let option = |name: &str| options[name].as_str();
        let mut args = signature["args"].as_array().cloned().unwrap_or_default();
        if signature["immutable"] != true {
            args.insert(0, argument.clone());
        }
        let kwargs = if signature["kwargs"].is_object() { signature["kwargs"].clone() } else { json!({}) };
        let id = option("task_id").map_or_else(
            || Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{}/{position}", parent.id).as_bytes()).to_string(),
            str::to_owned,
        );
        let stamped = options["stamped_headers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let stamps: Map<String, Value> = stamped
            .iter()
            .filter_map(|name| Some((name.as_str()?.to_owned(), options[name.as_str()?].clone())))
            .collect();
        let after = |seconds: &Value| {
            seconds
                .as_f64()
                .map(|seconds| Value::from(format_time(now + Duration::seconds_f64(seconds.clamp(0.0, 1e9)))))
        };
        let eta = after(&options["countdown"]).unwrap_or_else(|| unwrap_typed(options["eta"].clone()));
        let expires = after(&options["expires"]).unwrap_or_else(|| unwrap_typed(options["expires"].clone()));
        let repr = |value: &Value| value.to_string().chars().take(1_000).collect::<String>();
        let (args, headers_of) = (Value::from(args), |name: &str| options[name].clone());
        let headers = json!({
            "lang": "py",
            "task": signature["task"],
            "id": id,
            "shadow": options["shadow"],
            "eta": eta,
            "expires": expires,
            "group": headers_of("group_id"),
            "group_index": headers_of("group_index"),
            "retries": options["retries"].as_i64().unwrap_or(0),
            "timelimit": [options["time_limit"], options["soft_time_limit"]],
            "root_id": option("root_id").unwrap_or(parent.root_id),
            "parent_id": parent.id,
            "argsrepr": repr(&args),
            "kwargsrepr": repr(&kwargs),
            "origin": "asset-worker",
            "ignore_result": options["ignore_result"] == true,
            "replaced_task_nesting": 0,
            "stamped_headers": options["stamped_headers"],
            "stamps": stamps,
        });
        let embed = json!({
            "callbacks": list(&options["link"]),
            "errbacks": list(&options["link_error"]),
            "chain": if chain.is_empty() { Value::Null } else { chain.clone().into() },
            "chord": null,
        });
        let (exchange, routing_key) = route(options);
        OutgoingMessage {
            exchange,
            routing_key,
            kept_if_unrouted: true,
            correlation_id: id,
            reply_to: option("reply_to").map(str::to_owned),
            priority: options["priority"].as_u64().and_then(|priority| u8::try_from(priority).ok()),
            headers: options["headers"]
                .as_object()
                .into_iter()
                .chain(headers.as_object())
                .flatten()
                .map(owned)
                .collect(),
            body: json!([args, kwargs, embed]),
        }
    }
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// Exchange and routing key of a signature. Without them, the default exchange and the queue.
fn route(options: &Value) -> (String, String) {
    let name =
        |value: &Value| value.as_str().or(value["name"].as_str()).filter(|name| !name.is_empty()).map(str::to_owned);
    match (name(&options["exchange"]), name(&options["routing_key"])) {
        (Some(exchange), Some(key)) => (exchange, key),
        _ => (String::new(), name(&options["queue"]).unwrap_or_else(|| DEFAULT_QUEUE.to_owned())),
    }
}
