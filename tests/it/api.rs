//! The calls of the HTTP API.

use anyhow::{Context, Result};
use dev_services::wait::wait_until;
use integration_tests::{ApiClient, Database, TestEnv, WAIT_TIMEOUT, failure_codes};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

/// An environment with small images.
pub(crate) async fn new_env(database: Database) -> Result<TestEnv> {
    let mut env = TestEnv::with_database(database).await?;
    env.make_images_small();
    env.set("STABILITY_RETRY_DELAYS", "0s");
    env.set("WORKER_JOB_MAX_ATTEMPTS", "1");
    Ok(env)
}

/// Submits a job and returns its id.
pub(crate) async fn submit(api: &ApiClient, descriptions: &[&str], config: Value) -> Result<String> {
    let id = Uuid::now_v7().to_string();
    let body = json!({"project_id": 7, "image_descriptions": descriptions, "config": config});
    let answer = api.put(&format!("/v1/jobs/{id}"), &body).await?;
    assert_eq!((answer.status, answer.json()), (202, json!({"job_id": id, "is_new": true})));
    Ok(id)
}

/// Waits until a job has ended, and returns it.
pub(crate) async fn wait_for_end(api: &ApiClient, id: &str) -> Result<Value> {
    wait_until("the end of a job", WAIT_TIMEOUT, async || {
        let job = api.get(&format!("/v1/jobs/{id}")).await.ok()?.json();
        matches!(job["status"].as_str(), Some("completed" | "failed")).then_some(job)
    })
    .await
}

async fn submitted_job_runs_once(database: Database) -> Result<()> {
    let env = new_env(database).await?;
    let api = env.start_api().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let id = submit(&api, &["A fox", "A bear"], json!({"seed": 7})).await?;
    let path = format!("/v1/jobs/{id}");
    // Before any worker has seen it: its rows are there, and its command is on the queue once.
    let job = api.get(&path).await?.json();
    assert_eq!(
        (&job["status"], &job["total"], &job["assets"][1]["status"]),
        (&json!("waiting"), &json!(2), &json!("pending"))
    );
    producer.wait_for_waiting_commands(1).await?;

    // Equal after parsing, whatever the form; another one is refused, and nothing of it is kept.
    let again =
        json!({"config": {"seed": 7}, "job_id": id, "image_descriptions": [" A fox", "A bear"], "project_id": 7.0});
    let answer = api.put(&path, &again).await?;
    assert_eq!((answer.status, answer.json()), (200, json!({"job_id": id, "is_new": false})));
    let other = api.put(&path, &json!({"project_id": 7, "image_descriptions": ["A fox"]})).await?;
    assert_eq!((other.status, &other.json()["code"]), (409, &json!("job_id_conflict")));
    // The command is on the queue once, and no sweep will publish it.
    producer.wait_for_waiting_commands(1).await?;
    assert_eq!(env.query_rows("SELECT due_at_ms FROM jobs").await?, [json!({"due_at_ms": null})]);
    // It has waited for long.
    env.execute("UPDATE jobs SET created_at = '2020-01-01 00:00:00+00:00'").await?;

    let _worker = env.start_ready_worker().await?;
    let data = events.wait_for_data("completed").await?;
    assert_eq!((data["job_id"].as_str(), data["succeeded"].as_u64()), (Some(id.as_str()), Some(2)));
    let job = wait_for_end(&api, &id).await?;
    assert_eq!((&job["status"], &job["cost_usd"]), (&json!("completed"), &json!(0.04)));
    assert_eq!(job["assets"][0]["metadata"]["seed"], 7);
    assert_eq!(api.put(&path, &again).await?.status, 200);
    assert_eq!(env.sandbox.ledger().requests, 2);

    // The duration begins with the first lease.
    let duration_ms = data["duration_ms"].as_u64().context("a duration")?;
    assert!(duration_ms < 1_000_000, "{duration_ms}");
    let audit = env.query_rows("SELECT action, role, address, job_id FROM audit ORDER BY id").await?;
    let actions: Vec<_> = audit.iter().map(|row| row["action"].as_str().unwrap_or_default()).collect();
    assert_eq!(actions, ["submit"; 4]);
    assert_eq!((&audit[0]["role"], &audit[0]["address"]), (&json!("local"), &json!("127.0.0.1")));
    Ok(())
}

#[tokio::test]
async fn submitted_job_runs_once_with_sqlite() -> Result<()> {
    submitted_job_runs_once(Database::Sqlite).await
}

#[tokio::test]
async fn submitted_job_runs_once_with_postgres() -> Result<()> {
    submitted_job_runs_once(Database::Postgres).await
}

#[tokio::test]
async fn invalid_calls_name_the_field() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let id = Uuid::now_v7();
    let path = format!("/v1/jobs/{id}");
    let check = async |method: Method, path: &str, body: Value, fields: &[&str]| -> Result<()> {
        let answer = api.call(method, path, &body).await?;
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(
            answer.invalid_fields(),
            (422, fields.iter().map(|field| (*field).to_owned()).collect()),
            "{path} {body}"
        );
        Ok(())
    };
    let put = Method::PUT;
    check(
        put.clone(),
        &path,
        json!({"project_id": 0, "image_descriptions": ["A fox"], "config": {"steps": 5}}),
        &["project_id", "config.steps"],
    )
    .await?;
    check(
        put.clone(),
        &path,
        json!({"job_id": Uuid::now_v7(), "project_id": 1, "image_descriptions": ["A fox"]}),
        &["job_id"],
    )
    .await?;
    check(put.clone(), &path, json!([]), &["body"]).await?;
    check(
        put.clone(),
        &path,
        json!({"project_id": 1, "image_descriptions": [], "why": 1}),
        &["image_descriptions", "why"],
    )
    .await?;
    let command = json!({"project_id": 1, "image_descriptions": ["A fox"]});
    check(put.clone(), "/v1/jobs/7", command.clone(), &["job_id"]).await?;
    check(put.clone(), &format!("{path}?priority=9"), command.clone(), &["priority"]).await?;
    let post = Method::POST;
    check(post.clone(), &format!("{path}/cancel"), json!({"reason": "x".repeat(201)}), &["reason"]).await?;
    check(post.clone(), &format!("{path}/retry"), json!({"include_refused": "yes"}), &["include_refused"]).await?;
    check(post.clone(), &format!("{path}/redo"), json!({}), &["image"]).await?;
    check(post.clone(), &format!("{path}/redo"), json!({"image": 0, "seed": -1}), &["image", "seed"]).await?;
    check(post.clone(), "/v1/account/pause", json!({"reason": 7}), &["reason"]).await?;
    check(post.clone(), "/v1/estimate", json!({"project_id": 1}), &["image_descriptions"]).await?;
    check(post, "/v1/dead-letters/x/replay", json!({}), &["id"]).await?;
    for (query, field) in [
        ("status=done", "status"),
        ("project_id=x", "project_id"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("cursor=x", "cursor"),
        ("sort=asc", "sort"),
        ("limit=1&limit=2", "limit"),
    ] {
        let answer = api.get(&format!("/v1/jobs?{query}")).await?;
        assert_eq!(answer.invalid_fields(), (422, vec![field.to_owned()]), "{query}");
    }
    let form = api.request(Method::PUT, &path).header("content-type", "text/plain").body(command.to_string());
    assert_eq!(api.send(form).await?.status, 415);
    for (method, path, status) in
        [(Method::GET, "/v1", 404), (Method::DELETE, "/v1/jobs", 405), (Method::GET, "/v1/jobs/%ff", 404)]
    {
        let answer = api.send(api.request(method, path)).await?;
        assert_eq!((answer.status, answer.json()["status"].as_u64()), (status, Some(u64::from(status))), "{path}");
    }
    assert_eq!(env.query_rows("SELECT id FROM jobs").await?, Vec::<Value>::new());
    Ok(())
}

async fn jobs_are_listed_in_pages(database: Database) -> Result<()> {
    let env = new_env(database).await?;
    let api = env.start_api().await?;
    let mut ids = Vec::new();
    for _ in 0..7 {
        ids.push(submit(&api, &["A fox"], json!({})).await?);
    }
    ids.reverse();
    let read = async |query: &str| -> Result<Vec<String>> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("/v1/jobs?limit=3{query}{cursor}")).await?.json();
            let jobs = page["jobs"].as_array().context("a list")?;
            found.extend(jobs.iter().map(|job| job["job_id"].as_str().unwrap_or_default().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { return Ok(found) };
            cursor = format!("&cursor={next}");
        }
    };
    assert_eq!(read("").await?, ids);
    assert_eq!(read("&project_id=7&status=waiting").await?, ids);
    assert_eq!(read("&project_id=8").await?, Vec::<String>::new());
    assert_eq!(read("&status=completed").await?, Vec::<String>::new());
    let unknown = api.get(&format!("/v1/jobs/{}", Uuid::now_v7())).await?;
    assert_eq!((unknown.status, &unknown.json()["code"]), (404, &json!("not_found")));
    Ok(())
}

#[tokio::test]
async fn jobs_are_listed_in_pages_with_sqlite() -> Result<()> {
    jobs_are_listed_in_pages(Database::Sqlite).await
}

#[tokio::test]
async fn jobs_are_listed_in_pages_with_postgres() -> Result<()> {
    jobs_are_listed_in_pages(Database::Postgres).await
}

/// No worker runs: the server itself ends what is cancelled or has expired.
#[tokio::test]
async fn cancelled_and_expired_jobs_end_without_a_worker() -> Result<()> {
    let env = new_env(Database::Postgres).await?;
    let api = env.start_api().await?;
    let producer = env.connect_broker().await?;
    let mut events = producer.subscribe_to_events().await?;
    let cancel = async |id: &str, outcome: &str| -> Result<()> {
        let answer = api.post(&format!("/v1/jobs/{id}/cancel"), &json!({"reason": "wrong style"})).await?;
        assert_eq!((answer.status, answer.json()), (202, json!({"job_id": id, "outcome": outcome})));
        Ok(())
    };
    // A job that waits.
    let waiting = submit(&api, &["A fox"], json!({})).await?;
    cancel(&waiting, "cancelled").await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!((data["job_id"].as_str(), &data["error"]["code"]), (Some(waiting.as_str()), &json!("cancelled")));
    cancel(&waiting, "unchanged").await?;
    // A job that is submitted after its cancellation, also without a body.
    let later = Uuid::now_v7().to_string();
    assert_eq!(
        api.send(api.request(Method::POST, &format!("/v1/jobs/{later}/cancel"))).await?.json()["outcome"],
        "remembered"
    );
    let command = json!({"project_id": 7, "image_descriptions": ["A fox"]});
    assert_eq!(api.put(&format!("/v1/jobs/{later}"), &command).await?.status, 202);
    let data = events.wait_for_data("failed").await?;
    assert_eq!((data["job_id"].as_str(), &data["error"]["code"]), (Some(later.as_str()), &json!("cancelled")));
    assert_eq!(failure_codes(&data), ["not_attempted"]);
    // A job that has expired before it is submitted.
    let expired = submit(&api, &["A fox"], json!({"expires_at": "2020-01-01T00:00:00Z"})).await?;
    let data = events.wait_for_data("failed").await?;
    assert_eq!((data["job_id"].as_str(), &data["error"]["code"]), (Some(expired.as_str()), &json!("expired")));
    assert_eq!(env.sandbox.ledger().requests, 0);
    Ok(())
}

#[tokio::test]
async fn images_are_made_again() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let _worker = env.start_ready_worker().await?;
    let config = json!({"min_success_rate": 0.3, "seed": 7});
    let id = submit(&api, &["A fox", "A bear [fault:status=500 x2]", "A gory battle"], config).await?;
    wait_for_end(&api, &id).await?;
    let call = async |path: &str, body: Value| api.post(&format!("/v1/jobs/{id}/{path}"), &body).await;
    let retry = call("retry", json!({})).await?;
    let body = retry.json();
    assert_eq!((retry.status, &body["retry_of"], &body["images"]), (202, &json!(id), &json!([2])));
    let retried = wait_for_end(&api, body["job_id"].as_str().context("an id")?).await?;
    assert_eq!((&retried["status"], &retried["retry_of"]), (&json!("completed"), &json!(id)));
    assert_eq!(retried["assets"][0]["metadata"]["seed"], 8);

    let redo = call("redo", json!({"image": 1, "seed": 99})).await?;
    assert_eq!((redo.status, &redo.json()["is_new"]), (202, &json!(true)));
    let again = call("redo", json!({"image": 1, "seed": 99})).await?;
    assert_eq!((again.status, &again.json()["is_new"]), (200, &json!(false)));
    assert_eq!(again.json()["job_id"], redo.json()["job_id"]);
    let redone = wait_for_end(&api, redo.json()["job_id"].as_str().context("an id")?).await?;
    assert_eq!(redone["assets"][0]["metadata"]["seed"], 99);

    assert_eq!(call("redo", json!({"image": 2})).await?.status, 409);
    assert_eq!(call("redo", json!({"image": 9})).await?.invalid_fields(), (422, vec!["image".to_owned()]));
    assert_eq!(call("redo", json!({"image": 1, "seed": 0})).await?.invalid_fields(), (422, vec!["seed".to_owned()]));
    let unknown = api.post(&format!("/v1/jobs/{}/retry", Uuid::now_v7()), &json!({})).await?;
    assert_eq!(unknown.status, 404);
    Ok(())
}

#[tokio::test]
async fn images_and_their_copies_are_served() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let _worker = env.start_ready_worker().await?;
    let id = submit(&api, &["A fox", "A gory battle"], json!({"min_success_rate": 0.5})).await?;
    let job = wait_for_end(&api, &id).await?;
    let stored = env.stored_path(job["assets"][0]["file_path"].as_str().context("a path")?);
    let path = format!("/v1/jobs/{id}/images/1");
    let file = api.get(&path).await?;
    assert_eq!(
        (file.status, file.header("content-type"), file.body.clone()),
        (200, "image/png", std::fs::read(&stored)?)
    );
    let etag = file.header("etag").to_owned();
    let known = api.send(api.request(Method::GET, &path).header("if-none-match", &etag)).await?;
    assert_eq!((known.status, known.body.len(), known.header("etag")), (304, 0, etag.as_str()));
    let head = api.send(api.request(Method::HEAD, &path)).await?;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, file.body.len().to_string().as_str(), 0)
    );

    let copy = async |width: u32, accept: &str| {
        api.send(api.request(Method::GET, &format!("{path}?width={width}")).header("accept", accept)).await
    };
    let jpeg = copy(100, "image/*").await?;
    assert_eq!((jpeg.status, jpeg.header("content-type"), jpeg.header("vary")), (200, "image/jpeg", "accept"));
    let decoded = image::load_from_memory(&jpeg.body)?;
    assert_eq!((decoded.width(), decoded.height()), (100, 56));
    let webp = copy(100, "image/webp,*/*").await?;
    assert_eq!((webp.header("content-type"), &webp.body[8..12]), ("image/webp", &b"WEBP"[..]));
    assert_ne!(webp.header("etag"), jpeg.header("etag"));
    // Not wider than the image.
    let wide = image::load_from_memory(&copy(8_000, "*/*").await?.body)?;
    assert_eq!((wide.width(), wide.height()), (320, 180));
    assert_eq!(std::fs::read_dir(env.folder().join("data/cache"))?.count(), 3);

    assert_eq!(api.get(&format!("/v1/jobs/{id}/images/2")).await?.status, 404, "it failed");
    assert_eq!(api.get(&format!("/v1/jobs/{id}/images/3")).await?.status, 404);
    std::fs::remove_file(&stored)?;
    assert_eq!(api.get(&path).await?.status, 404);
    // The cache has this copy, and no other one.
    assert_eq!(copy(100, "image/*").await?.body, jpeg.body);
    assert_eq!(copy(90, "image/*").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn estimate_is_that_of_the_command_line() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    env.set("WORKER_DAILY_BUDGET_USD", "10");
    let api = env.start_api().await?;
    let _worker = env.start_ready_worker().await?;
    wait_for_end(&api, &submit(&api, &["A fox", "A bear"], json!({})).await?).await?;
    let command = json!({
        "job_id": Uuid::now_v7(), "project_id": 7, "image_descriptions": ["A fox", "A wolf", "A cat"], "config": {"cache": "prefer"},
    });
    std::fs::write(env.folder().join("job.json"), command.to_string())?;
    let estimate = wait_until("a worker on the queue", WAIT_TIMEOUT, async || {
        let estimate = api.post("/v1/estimate", &command).await.ok()?.json();
        (estimate["duration"]["workers"] == 1).then_some(estimate)
    })
    .await?;
    let output = env.run(&["estimate", "--file", "job.json", "--json"]).await?;
    let expected: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(estimate, expected);
    assert_eq!((&estimate["cached"], &estimate["cost_usd"]), (&json!(1), &json!(0.04)));
    assert_eq!(env.query_rows("SELECT id FROM jobs").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn account_shows_gate_budget_and_queues() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    env.set("WORKER_DAILY_BUDGET_USD", "10");
    env.set("STABILITY_RATE_LIMIT", "120");
    let api = env.start_api().await?;
    let account = wait_until("the account", WAIT_TIMEOUT, async || {
        let account = api.get("/v1/account").await.ok()?.json();
        (account["credits"].is_number() && account["queues"].is_object()).then_some(account)
    })
    .await?;
    let credits = account["credits"].clone();
    assert_eq!(
        account,
        json!({
            "gate": {"is_open": true, "reasons": []},
            "quota": {"requests_per_minute": 120, "pause_seconds": 0.0},
            "budget": {"limit_usd": 10.0, "spent_usd": 0.0, "left_usd": 10.0},
            "credits": credits,
            "queues": {"waiting": 0, "consumers": 0, "dead_letters": 0},
        })
    );
    let paused = api.post("/v1/account/pause", &json!({"reason": "maintenance"})).await?;
    assert_eq!((paused.status, paused.json()), (200, json!({"paused": true, "was_paused": false})));
    let gate = &api.get("/v1/account").await?.json()["gate"];
    assert_eq!((&gate["is_open"], &gate["reasons"][0]["code"]), (&json!(false), &json!("paused")));
    let message = gate["reasons"][0]["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("maintenance"), "{message}");
    let resumed = api.send(api.request(Method::POST, "/v1/account/resume")).await?;
    assert_eq!(resumed.json(), json!({"paused": false, "was_paused": true}));
    assert_eq!(api.get("/v1/account").await?.json()["gate"]["is_open"], true);
    Ok(())
}

#[tokio::test]
async fn dead_letters_are_listed_replayed_and_discarded() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let producer = env.connect_broker().await?;
    let worker = env.start_ready_worker().await?;
    for body in [&b"no JSON"[..], b"[]"] {
        producer.publish_bytes(body, None).await?;
    }
    let list = wait_until("two dead letters", WAIT_TIMEOUT, async || {
        let list = api.get("/v1/dead-letters").await.ok()?.json();
        (list["dead_letters"].as_array()?.len() == 2).then_some(list)
    })
    .await?;
    drop(worker);
    let output = env.run(&["dead-letters", "list", "--json"]).await?;
    let listed: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&list["dead_letters"], &list["has_more"]), (&listed, &json!(false)));
    let id = |position: usize| list["dead_letters"][position]["id"].as_str().unwrap_or_default().to_owned();
    let replayed = api.post(&format!("/v1/dead-letters/{}/replay", id(0)), &json!({})).await?;
    assert_eq!((replayed.status, replayed.body.len()), (204, 0));
    producer.wait_for_waiting_commands(1).await?;
    let discard = async |id: &str| api.send(api.request(Method::DELETE, &format!("/v1/dead-letters/{id}"))).await;
    assert_eq!(discard(&id(1)).await?.status, 204);
    assert_eq!(api.get("/v1/dead-letters").await?.json()["dead_letters"], json!([]));
    assert_eq!(discard(&id(1)).await?.status, 404);
    let actions = env.query_rows("SELECT action FROM audit ORDER BY id").await?;
    assert_eq!(actions, [json!({"action": "replay"}), json!({"action": "discard"}), json!({"action": "discard"})]);
    Ok(())
}
