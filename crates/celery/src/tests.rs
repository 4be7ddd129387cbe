use std::io::Write;

use domain::command::JobKey;
use domain::event::{Event, EventContext, JobError, Totals};
use domain::failure::JobFailureCode;
use domain::outgoing::OutgoingMessage;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;

use crate::node::{self, Control, Request};
use crate::{Envelope, Refused, Reply, Task};

const ID: &str = "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10";
const NOW: OffsetDateTime = datetime!(2026-12-01 12:00 UTC);

fn read(headers: &Value, body: &[u8]) -> Option<Result<Task, String>> {
    let headers = headers.as_object().expect("headers are an object");
    let envelope = Envelope {
        headers,
        content_type: "application/json",
        content_encoding: "utf-8",
        reply_to: Some("replies"),
        correlation_id: Some(ID),
        priority: Some(7),
        body,
    };
    let task = Task::read(&envelope, &["assets.generate".to_owned()])?;
    Some(task.map_err(|refused| refused.reason))
}

fn headers() -> Value {
    json!({"task": "assets.generate", "id": ID, "root_id": "root", "parent_id": "parent", "group": "group"})
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

fn command(args: &Value, kwargs: &Value) -> Result<Value, String> {
    let body = json!([args, kwargs, {}]).to_string();
    read(&headers(), body.as_bytes()).expect("a task").map(|task| task.command.into())
}

fn refusal(headers: &Value, body: &[u8]) -> String {
    read(headers, body).expect("a task").expect_err("the task is refused")
}

fn reply(embed: &Value) -> Reply {
    let body = json!([[], {}, embed]).to_string();
    read(&headers(), body.as_bytes()).expect("a task").expect("the task is accepted").reply
}

fn terminal(error: Option<&JobError>) -> Event {
    let key = JobKey { job_id: Uuid::try_parse(ID).expect("a UUID"), project_id: 42 };
    let context = EventContext { key, trace: None, time: NOW };
    Event::terminal(&context, &[], None, Totals { cost_usd: 0.0, duration_ms: 5 }, error)
}

#[test]
fn arguments_are_positional_named_or_one_object() {
    let expected = json!({"project_id": 1, "image_descriptions": ["A fox"], "config": {"seed": 7}, "job_id": ID});
    let (list, whole) = (json!([1, ["A fox"], {"seed": 7}]), json!({"project_id": 1, "image_descriptions": ["A fox"]}));
    assert_eq!(command(&list, &json!({})), Ok(expected.clone()));
    assert_eq!(
        command(&json!([1]), &json!({"image_descriptions": ["A fox"], "config": {"seed": 7}})),
        Ok(expected.clone())
    );
    assert_eq!(command(&json!([whole]), &json!({"config": {"seed": 7}})), Ok(expected));
    assert_eq!(
        command(&json!([1]), &json!({"project_id": 2})).expect_err("twice"),
        "project_id: given twice, in args and in kwargs"
    );
    assert!(command(&json!([1, [], {}, 4]), &json!({})).expect_err("too many").starts_with("args: too many"));
    assert!(command(&json!([whole, 4]), &json!({})).expect_err("too many").starts_with("args: too many"));
    let own = json!({"job_id": "own"});
    assert_eq!(command(&json!([]), &own).expect("a command")["job_id"], "own");
}

#[test]
fn python_types_become_plain_values() {
    let typed = |kind: &str, value: Value| json!({"__type__": kind, "__value__": value});
    let kwargs = json!({
        "job_id": typed("uuid", json!({"hex": "0199f3a27c1e7b529f0e2f6c1d9a4b10"})),
        "config": {"expires_at": typed("datetime", json!("2026-12-01T12:00:00+00:00"))},
        "image_descriptions": [typed("bytes", json!("A fox"))],
    });
    let expected = json!({
        "job_id": "0199f3a27c1e7b529f0e2f6c1d9a4b10",
        "config": {"expires_at": "2026-12-01T12:00:00+00:00"},
        "image_descriptions": ["A fox"],
    });
    assert_eq!(command(&json!([]), &kwargs), Ok(expected));
}

#[test]
fn times_of_headers_are_read_with_and_without_offset() {
    let body = json!([[], {"config": null}, null]).to_string();
    let due_at = |eta: &str| {
        let task = read(&with(headers(), "eta", eta.into()), body.as_bytes()).expect("a task");
        task.map(|task| task.due_at)
    };
    assert_eq!(due_at("2026-12-01T14:00:00.500000+02:00"), Ok(Some(datetime!(2026-12-01 12:00:00.5 UTC))));
    assert_eq!(due_at("2026-12-01T12:00:00"), Ok(Some(NOW)));
    let reason = due_at("soon").expect_err("not a time");
    assert_eq!(reason, "eta: \"soon\" is not allowed; a time such as \"2026-12-01T12:00:00+00:00\"");
    let expires = |expires: &str, own: Value| {
        let headers = with(headers(), "expires", expires.into());
        let body = json!([[], {"config": {"expires_at": own}}, null]).to_string();
        let task = read(&headers, body.as_bytes()).expect("a task").expect("accepted");
        task.command["config"]["expires_at"].clone()
    };
    let (earlier, later) = ("2026-12-01T12:00:00+00:00", "2026-12-01T13:00:00Z");
    assert_eq!(expires(earlier, Value::Null), json!(earlier));
    assert_eq!(expires(earlier, json!(later)), json!(earlier));
    assert_eq!(expires("2026-12-01T14:00:00+00:00", json!(later)), json!(later));
}

#[test]
fn bodies_are_bounded_and_their_format_is_named() {
    let compressed = |name: &str, bytes: &[u8]| {
        let headers = with(headers(), "compression", name.into());
        refusal(&headers, bytes)
    };
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(&vec![b' '; 100_000_000]).expect("compress");
    let bomb = zlib.finish().expect("compress");
    assert_eq!(compressed("application/x-gzip", &bomb), "body: more than 4194304 bytes is not allowed");
    for name in ["application/x-gzip", "application/x-bz2", "application/zstd"] {
        assert!(compressed(name, b"no").starts_with(&format!("body: not compressed with {name}")), "{name}");
    }
    assert!(refusal(&headers(), b"{}").starts_with("body: not the body of Celery's protocol 2"));
    assert!(refusal(&headers(), b"[[], {}]").starts_with("body: not the body of Celery's protocol 2"));
    assert!(refusal(&headers(), b"no").starts_with("body: not JSON in UTF-8"));
    let base64 = with(headers(), "body_encoding", "base64".into());
    assert!(refusal(&base64, b"?").starts_with("body: not base64"));
    assert!(read(&base64, b"W1tdLCB7fSwge31d").is_some_and(|task| task.is_ok()));
}

#[test]
fn only_messages_of_celery_are_read() {
    assert!(read(&json!({}), br#"{"job_id": "x", "project_id": 1}"#).is_none());
    assert!(read(&json!({}), b"no").is_none());
    let old = br#"{"task": "assets.generate", "id": "x", "args": [], "kwargs": {}}"#;
    let headers_of_old = Map::new();
    let envelope = Envelope {
        headers: &headers_of_old,
        content_type: "application/json",
        content_encoding: "",
        reply_to: Some("replies"),
        correlation_id: Some("x"),
        priority: None,
        body: old,
    };
    let refused = Refused::of_protocol_1(&envelope).expect("protocol 1");
    assert!(refused.reason.contains("protocol 1 is not allowed"));
    assert_eq!(refused.reply.failure("code", "why", NOW)[0].body["task_id"], "x");
    let other = with(headers(), "task", "assets.paint".into());
    assert_eq!(refusal(&other, b"[[], {}, {}]"), "task: \"assets.paint\" is not allowed; assets.generate");
}

#[test]
fn links_are_published_with_result_root_and_parent() {
    let options = json!({
        "task_id": "next-id", "reply_to": "caller", "queue": "render", "priority": 3, "group_id": "g", "group_index": 2,
        "countdown": 10, "expires": 20.5, "link": [{"task": "later"}], "link_error": [{"task": "worse"}],
    });
    let next = json!({"task": "render", "args": ["more"], "kwargs": {"fast": true}, "options": options});
    let reply = reply(&json!({"callbacks": [], "errbacks": null, "chain": [{"task": "last"}, next], "chord": null}));
    let messages = reply.end(&terminal(None), NOW);
    let [link, result] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!((link.exchange.as_str(), link.routing_key.as_str(), link.kept_if_unrouted), ("", "render", true));
    assert_eq!(
        (link.correlation_id.as_str(), link.reply_to.as_deref(), link.priority),
        ("next-id", Some("caller"), Some(3))
    );
    let header = |name: &str| link.headers[name].clone();
    assert_eq!((header("id"), header("root_id"), header("parent_id")), (json!("next-id"), json!("root"), json!(ID)));
    assert_eq!((header("group"), header("group_index")), (json!("g"), json!(2)));
    assert_eq!(header("eta"), "2026-12-01T12:00:10+00:00");
    assert_eq!(header("expires"), "2026-12-01T12:00:20.5+00:00");
    assert_eq!(
        (&link.body[0][0]["job_id"], &link.body[0][1], &link.body[1]),
        (&json!(ID), &json!("more"), &json!({"fast": true}))
    );
    let embed = json!({"callbacks": [{"task": "later"}], "errbacks": [{"task": "worse"}], "chain": [{"task": "last"}], "chord": null});
    assert_eq!(link.body[2], embed);
    let body = &result.body;
    assert_eq!(
        (&body["status"], &body["task_id"], &body["group_id"], &body["parent_id"]),
        (&json!("SUCCESS"), &json!(ID), &json!("group"), &json!("parent"))
    );
    assert_eq!(
        (result.routing_key.as_str(), result.correlation_id.as_str(), result.kept_if_unrouted),
        ("replies", ID, false)
    );
}

/// Names of the linked tasks, with the rest of their chains.
fn linked(embed: &Value) -> Vec<(Value, Value)> {
    let messages = reply(embed).end(&terminal(None), NOW);
    let links = messages.iter().filter(|message| message.kept_if_unrouted);
    links.map(|link| (link.headers["task"].clone(), link.body[2]["chain"].clone())).collect()
}

#[test]
fn groups_and_chains_are_unfolded() {
    let task = |name: &str| json!({"task": name});
    let group = |tasks: Value| json!({"task": "celery.group", "kwargs": {"tasks": tasks}});
    let chain = |tasks: Value| json!({"task": "celery.chain", "kwargs": {"tasks": tasks}});
    let several = group(json!([task("a"), chain(json!([task("b"), task("c"), task("d")]))]));
    let expected = vec![(json!("a"), Value::Null), (json!("b"), json!([task("d"), task("c")]))];
    assert_eq!(linked(&json!({"callbacks": [several]})), expected);
    assert_eq!(linked(&json!({"chain": [several]})), expected);
    let nested = json!({"chain": [task("z"), chain(json!([task("a"), task("b")]))]});
    assert_eq!(linked(&nested), vec![(json!("a"), json!([task("z"), task("b")]))]);
    for embed in [
        json!({"chord": task("body")}),
        json!({"chain": [task("z"), group(json!([task("a")]))]}),
        json!({"callbacks": [{"task": "celery.chord"}]}),
        json!({"errbacks": [{"task": "celery.chord"}]}),
    ] {
        let body = json!([[], {}, embed]).to_string();
        assert!(refusal(&headers(), body.as_bytes()).starts_with("chord: not allowed"), "{embed}");
    }
    let long = json!([[], {}, {"callbacks": [{"task": "a", "options": {"queue": "q".repeat(256)}}]}]).to_string();
    assert!(refusal(&headers(), long.as_bytes()).contains("more than 255 bytes"));
}

#[test]
fn failure_reaches_the_whole_chain_and_revocation_does_not() {
    let options = |id: &str| json!({"task": id, "options": {"task_id": id, "reply_to": "caller"}});
    let group = json!({"task": "celery.group", "kwargs": {"tasks": [options("b"), options("c")]}});
    let reply = reply(&json!({"errbacks": [{"task": "failed"}], "chain": [group], "callbacks": [options("x")]}));
    let end = |code| reply.end(&terminal(Some(&JobError { code, message: "why".to_owned() })), NOW);
    let messages = end(JobFailureCode::SuccessRateTooLow);
    let ids = |messages: &[OutgoingMessage]| -> Vec<Value> {
        messages.iter().map(|one| one.body["task_id"].clone()).collect()
    };
    assert_eq!(ids(&messages), [Value::Null, json!(ID), json!("b"), json!("c")]);
    assert_eq!(messages[0].body[0], json!([ID]), "the errback gets the id of the task");
    let error =
        json!({"exc_type": "RuntimeError", "exc_message": ["success_rate_too_low", "why"], "exc_module": "builtins"});
    assert!(messages[1..].iter().all(|message| message.body["result"] == error));
    for (code, reason) in [(JobFailureCode::Cancelled, "revoked"), (JobFailureCode::Expired, "expired")] {
        let messages = end(code);
        assert_eq!(ids(&messages), [json!(ID)]);
        assert_eq!(
            (&messages[0].body["status"], &messages[0].body["result"]["exc_message"]),
            (&json!("REVOKED"), &json!([reason]))
        );
    }
}

#[test]
fn ignored_results_are_not_sent() {
    let body = json!([[], {}, {"callbacks": [{"task": "next"}]}]).to_string();
    let headers = with(headers(), "ignore_result", true.into());
    let reply = read(&headers, body.as_bytes()).expect("a task").expect("accepted").reply;
    let messages = reply.end(&terminal(None), NOW);
    assert!(messages.len() == 1 && messages[0].kept_if_unrouted, "only the link: {messages:?}");
    assert!(Reply::from_stored(&reply.to_stored()).is_some_and(|restored| restored == reply));
}

#[test]
fn repeated_end_has_the_same_ids() {
    let reply = reply(&json!({"callbacks": [{"task": "a"}, {"task": "a"}]}));
    let ids =
        |now| -> Vec<String> { reply.end(&terminal(None), now).into_iter().map(|one| one.correlation_id).collect() };
    assert_eq!(ids(NOW), ids(NOW + time::Duration::HOUR));
    let first = ids(NOW);
    assert!(first[0] != first[1] && Uuid::try_parse(&first[0]).is_ok(), "{first:?}");
}

#[test]
fn remote_control_is_for_named_nodes() {
    let request = |message: Value| {
        Control::parse(message.to_string().as_bytes(), "asset-worker-1@host").map(|control| control.request)
    };
    assert_eq!(request(json!({"method": "ping"})), Some(Request::Ping));
    assert_eq!(request(json!({"method": "ping", "destination": ["celery@host"]})), None);
    assert_eq!(request(json!({"method": "ping", "destination": ["asset-worker-1@host"]})), Some(Request::Ping));
    assert_eq!(request(json!({"method": "ping", "pattern": "asset-*@h?st", "matcher": "glob"})), Some(Request::Ping));
    assert_eq!(request(json!({"method": "ping", "pattern": "celery@*", "matcher": "glob"})), None);
    let one = json!({"method": "revoke", "arguments": {"task_id": "a"}});
    assert_eq!(request(one), Some(Request::Revoke(vec!["a".to_owned()])));
    let two = json!({"method": "revoke", "arguments": {"task_id": ["a", "b"], "terminate": true}});
    assert_eq!(request(two), Some(Request::Revoke(vec!["a".to_owned(), "b".to_owned()])));
    assert_eq!(request(json!({"method": "pool_grow"})), Some(Request::Unknown("pool_grow".to_owned())));
    assert_eq!(request(json!([])), None);
    let event = node::event("worker-heartbeat", "n@h", 3, NOW, json!({"freq": 2}));
    assert_eq!((event.exchange.as_str(), event.routing_key.as_str()), ("celeryev", "worker.heartbeat"));
    assert_eq!((&event.body["timestamp"], &event.body["freq"]), (&json!(1_796_126_400.0), &json!(2)));
}

/// As Celery sends them: options of a chain and of a group are those of their tasks.
#[test]
fn options_of_chains_and_groups_reach_their_tasks() {
    let options = json!({"link_error": {"task": "failed"}, "link": [{"task": "done"}]});
    let chain =
        json!({"task": "celery.chain", "kwargs": {"tasks": [{"task": "a"}, {"task": "b"}]}, "options": options});
    let messages = reply(&json!({"callbacks": [chain]})).end(&terminal(None), NOW);
    let embed = &messages[0].body[2];
    assert_eq!((&embed["errbacks"], &embed["callbacks"]), (&json!([{"task": "failed"}]), &Value::Null));
    let last = &embed["chain"][0]["options"];
    assert_eq!((&last["link_error"], &last["link"]), (&json!([{"task": "failed"}]), &json!([{"task": "done"}])));
    let options = json!({"task_id": "group-id", "link_error": [{"task": "failed"}]});
    let group =
        json!({"task": "celery.group", "kwargs": {"tasks": [{"task": "a"}, {"task": "b"}]}, "options": options});
    let messages = reply(&json!({"chain": [group]})).end(&terminal(None), NOW);
    let headers: Vec<_> =
        messages[..2].iter().map(|one| (&one.headers["group"], &one.headers["group_index"])).collect();
    assert_eq!(headers, [(&json!("group-id"), &json!(0)), (&json!("group-id"), &json!(1))]);
    assert_eq!(messages[1].body[2]["errbacks"], json!([{"task": "failed"}]));
}

#[test]
fn types_of_linked_arguments_are_kept() {
    let typed = json!({"__type__": "decimal", "__value__": "1.5"});
    let eta = json!({"__type__": "datetime", "__value__": "2026-12-02T12:00:00+00:00"});
    let next = json!({"task": "a", "args": [typed], "options": {"eta": eta, "stamped_headers": ["s"], "s": 7}});
    let messages = reply(&json!({"callbacks": [next]})).end(&terminal(None), NOW);
    assert_eq!((&messages[0].body[0][1], &messages[0].headers["eta"]), (&typed, &json!("2026-12-02T12:00:00+00:00")));
    assert_eq!(messages[0].headers["stamps"], json!({"s": 7}));
}

#[test]
fn bodies_that_cannot_be_stored_are_refused() {
    let refused = |embed: Value| refusal(&headers(), json!([[], {}, embed]).to_string().as_bytes());
    assert_eq!(refused(json!({"callbacks": [{"task": "a\0"}]})), "body: the character NUL is not allowed");
    assert_eq!(refused(json!({"chain": [{"a\0": 1}]})), "body: the character NUL is not allowed");
    let deep = (0..70).fold(json!(1), |inner, _| json!([inner]));
    assert_eq!(refused(json!({"callbacks": [deep]})), "body: nested more than 64 levels deep");
    let many: Vec<Value> = (0..101).map(|_| json!({"task": "a"})).collect();
    assert_eq!(refused(json!({"callbacks": many})), "101 linked tasks are not allowed; at most 100");
    assert_eq!(refused(json!({"errbacks": many})), "101 linked tasks are not allowed; at most 100");
    let named = json!([{"task": "a", "options": {"queue": {"name": "q".repeat(256)}}}]);
    assert!(refused(json!({"callbacks": named})).contains("more than 255 bytes"));
    let body = b"[[], {\"job_id\": \"x\"}, {}]";
    assert_eq!(refusal(&with(headers(), "id", Value::Null), body), "id: missing; the id of the task");
    for time in ["9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"] {
        assert!(refusal(&with(headers(), "eta", time.into()), b"[[], {}, {}]").starts_with("eta: "), "{time}");
        assert!(refusal(&with(headers(), "expires", time.into()), b"[[], {}, {}]").starts_with("expires: "), "{time}");
    }
    let long = with(with(headers(), "id", "i\0".repeat(300).into()), "root_id", "r\0".into());
    let task = read(&long, b"[[], {}, {}]").expect("a task").expect("accepted");
    assert_eq!((task.reply.id.len(), task.reply.root_id.as_str()), (255, "r"));
}

#[test]
fn glob_takes_no_time_for_many_stars() {
    let pattern = format!("{}x", "*".repeat(100_000));
    let message = json!({"method": "ping", "pattern": pattern, "matcher": "glob"}).to_string();
    assert!(Control::parse(message.as_bytes(), &"a".repeat(250)).is_none());
}

/// Any JSON, with the keys that are read here among others.
fn any_json() -> impl Strategy<Value = Value> {
    let keys = "task|args|kwargs|options|tasks|link|link_error|chain|chord|callbacks|errbacks|eta|countdown|queue|name|task_id|x";
    let names = "celery.group|celery.chain|celery.chord|a";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        names.prop_map(Value::from),
        any::<String>().prop_map(Value::from)
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(keys, inner, 0..8).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// No body makes the adapter panic, neither when it is read nor when its job ends.
    #[test]
    fn any_task_is_read_and_ended(body in prop::collection::vec(any_json(), 0..4), embed in any_json(), eta in any_json(),
            bytes: Vec<u8>, raw: bool, compression in "application/(x-gzip|x-bz2|zstd)|") {
        let body = if raw { bytes } else if body.len() == 2 { json!([body[0], body[1], embed]).to_string().into_bytes() }
            else { Value::from(body).to_string().into_bytes() };
        let headers = json!({"task": "assets.generate", "id": ID, "compression": compression, "eta": eta, "expires": eta});
        let map: &Map<String, Value> = headers.as_object().expect("an object");
        let envelope = Envelope { headers: map, content_type: "application/json", content_encoding: "", reply_to: Some("r"),
            correlation_id: None, priority: None, body: &body };
        let reply = match Task::read(&envelope, &["assets.generate".to_owned()]).expect("a task") {
            Ok(task) => task.reply,
            Err(refused) => *refused.reply,
        };
        prop_assert!(Reply::from_stored(&reply.to_stored()).is_some_and(|restored| restored == reply));
        prop_assert!(!reply.end(&terminal(None), NOW).is_empty());
        prop_assert!(!reply.failure("code", "why", NOW).is_empty());
    }

    /// The tree of a signature is unfolded without a panic, with any options.
    #[test]
    fn any_successors_are_read(callbacks in prop::collection::vec(any_json(), 0..3), chain in any_json()) {
        let body = json!([[], {}, {"callbacks": callbacks, "chain": chain}]).to_string();
        if let Some(Ok(task)) = read(&headers(), body.as_bytes()) {
            prop_assert!(!task.reply.end(&terminal(None), NOW).is_empty());
        }
    }
}
