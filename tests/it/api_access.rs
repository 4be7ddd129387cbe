//! Who may call the HTTP API, and what happens to those who may not.

use anyhow::{Context, Result};
use integration_tests::{ApiServer, Database, TestEnv};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::{new_env, submit};

const TOKEN: &str = "4f1c9e0b7d2a4c6f8e1d";
const READ_TOKEN: &str = "0a9b8c7d6e5f40312233";

async fn env_with_tokens() -> Result<(TestEnv, ApiServer)> {
    let mut env = new_env(Database::Sqlite).await?;
    env.set("API_TOKEN", TOKEN);
    env.set("API_READ_TOKEN", READ_TOKEN);
    let api = env.start_api().await?;
    Ok((env, api))
}

/// All calls, each with whether it may change something.
fn calls() -> Vec<(Method, String, bool)> {
    let id = Uuid::nil();
    let call = |method, path: &str, is_change| (method, path.replace("{id}", &id.to_string()), is_change);
    vec![
        call(Method::GET, "/openapi.json", false),
        call(Method::GET, "/v1/jobs", false),
        call(Method::GET, "/v1/jobs/{id}", false),
        call(Method::GET, "/v1/jobs/{id}/events", false),
        call(Method::GET, "/v1/jobs/{id}/images/1", false),
        call(Method::GET, "/v1/account", false),
        call(Method::GET, "/v1/dead-letters", false),
        call(Method::POST, "/v1/estimate", false),
        call(Method::PUT, "/v1/jobs/{id}", true),
        call(Method::POST, "/v1/jobs/{id}/cancel", true),
        call(Method::POST, "/v1/jobs/{id}/retry", true),
        call(Method::POST, "/v1/jobs/{id}/redo", true),
        call(Method::POST, "/v1/account/pause", true),
        call(Method::POST, "/v1/account/resume", true),
        call(Method::POST, "/v1/dead-letters/0123456789ab/replay", true),
        call(Method::DELETE, "/v1/dead-letters/0123456789ab", true),
    ]
}

#[tokio::test]
async fn token_decides_which_calls_are_allowed() -> Result<()> {
    let (env, api) = env_with_tokens().await?;
    let (reader, stranger) = (api.with_token(Some(READ_TOKEN)), api.with_token(None));
    let described = api.get("/openapi.json").await?.json();
    let operations = described["paths"].as_object().context("paths")?.values().filter_map(Value::as_object);
    assert_eq!(operations.map(serde_json::Map::len).sum::<usize>(), calls().len(), "every call is in this list");
    for (method, path, is_change) in calls() {
        let body = json!({"sparkle": true});
        let status = stranger.call(method.clone(), &path, &body).await?;
        assert_eq!((status.status, status.header("www-authenticate")), (401, "Bearer"), "{path}");
        let status = reader.call(method.clone(), &path, &body).await?.status;
        assert_eq!(status == 403, is_change, "{method} {path}: {status}");
        let status = api.call(method.clone(), &path, &body).await?.status;
        assert!(![401, 403].contains(&status), "{method} {path}: {status}");
    }
    // What was refused, or is invalid, is not in the audit; and nothing was changed.
    let audit = env.query_rows("SELECT action, role FROM audit ORDER BY action").await?;
    assert_eq!(audit, [json!({"action": "discard", "role": "full"})]);
    for path in ["livez", "readyz", "metrics"] {
        assert_eq!(stranger.get(&format!("/{path}")).await?.status, 200);
    }
    Ok(())
}

#[tokio::test]
async fn guesses_of_a_token_are_limited_by_address() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    env.set("API_TOKEN", TOKEN);
    env.set("API_TRUSTED_PROXIES", "127.0.0.0/8");
    let api = env.start_api().await?;
    let call = async |token: &str, address: &str| -> Result<u16> {
        let client = api.with_token(Some(token));
        Ok(client.send(client.request(Method::GET, "/v1/jobs").header("x-forwarded-for", address)).await?.status)
    };
    for _ in 0..10 {
        assert_eq!(call("wrong", "192.0.2.1").await?, 401);
    }
    // From now on not even the right token is looked at.
    assert_eq!((call("wrong", "192.0.2.1").await?, call(TOKEN, "192.0.2.1").await?), (429, 429));
    assert_eq!(call(TOKEN, "192.0.2.2").await?, 200);
    // What stands before the address that the proxy has seen is a claim of the client.
    assert_eq!(call(TOKEN, "192.0.2.2, 192.0.2.1").await?, 429);
    Ok(())
}

#[tokio::test]
async fn forwarded_address_counts_only_from_a_trusted_proxy() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    let body = json!({"project_id": 7, "image_descriptions": ["A fox"]}).to_string();
    for proxies in ["", "127.0.0.1"] {
        env.set("API_TRUSTED_PROXIES", proxies);
        let api = env.start_api().await?;
        let request = api.request(Method::PUT, &format!("/v1/jobs/{}", Uuid::now_v7()));
        let request = request.header("content-type", "application/json").header("x-forwarded-for", "192.0.2.7");
        assert_eq!(api.send(request.body(body.clone())).await?.status, 202);
    }
    let addresses = env.query_rows("SELECT address FROM audit ORDER BY id").await?;
    assert_eq!(addresses, [json!({"address": "127.0.0.1"}), json!({"address": "192.0.2.7"})]);
    Ok(())
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_unless_configured() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    let studio = "https://studio.example.org";
    for (origins, allowed) in [("", false), (studio, true)] {
        env.set("API_CORS_ORIGINS", origins);
        let api = env.start_api().await?;
        let pause = api.request(Method::POST, "/v1/account/pause").header("origin", studio);
        assert_eq!(api.send(pause).await?.status, if allowed { 200 } else { 403 });
        let list = api.send(api.request(Method::GET, "/v1/jobs").header("origin", studio)).await?;
        assert_eq!(list.header("access-control-allow-origin"), if allowed { studio } else { "" });
        let preflight = api.request(Method::OPTIONS, "/v1/jobs/x").header("origin", studio);
        let preflight = api.send(preflight.header("access-control-request-method", "PUT")).await?;
        assert_eq!(preflight.header("access-control-allow-origin"), if allowed { studio } else { "" });
        let other = api.send(api.request(Method::GET, "/v1/jobs").header("origin", "https://evil.example.org")).await?;
        assert_eq!(other.header("access-control-allow-origin"), "");
    }
    // Without a token, a name that leads to this machine is not enough.
    let api = env.start_api().await?;
    let rebound = api.send(api.request(Method::GET, "/v1/jobs").header("host", "evil.example.org")).await?;
    assert_eq!((rebound.status, &rebound.json()["code"]), (403, &json!("forbidden")));
    Ok(())
}

#[tokio::test]
async fn server_without_a_token_listens_only_on_loopback() -> Result<()> {
    let mut env = new_env(Database::Sqlite).await?;
    env.set("API_ADDR", "0.0.0.0:0");
    let refused = env.run(&["serve"]).await?;
    let error = String::from_utf8(refused.stderr)?;
    assert_eq!(refused.status.code(), Some(64));
    assert!(error.contains("API_TOKEN: not set; a token of at least 16 characters"), "{error}");
    env.set("API_TOKEN", "short");
    let refused = env.run(&["serve"]).await?;
    let error = String::from_utf8(refused.stderr)?;
    assert!(
        error.contains("API_TOKEN: its value is not allowed; a token of at least 16") && !error.contains("short"),
        "{error}"
    );
    env.set("API_TOKEN", TOKEN);
    env.set("API_READ_TOKEN", TOKEN);
    let refused = env.run(&["serve"]).await?;
    assert!(String::from_utf8(refused.stderr)?.contains("API_READ_TOKEN: its value is not allowed; another token"));
    Ok(())
}

/// The tokens appear nowhere: not in the log, not in the metrics, not in the database.
#[tokio::test]
async fn tokens_stay_secret() -> Result<()> {
    let (env, mut api) = env_with_tokens().await?;
    submit(&api, &["A fox"], json!({})).await?;
    api.with_token(Some(READ_TOKEN)).get("/v1/account").await?;
    let metrics = String::from_utf8(api.get("/metrics").await?.body)?;
    let audit = format!("{:?}", env.query_rows("SELECT * FROM audit").await?);
    let log = api.process().log();
    assert!(log.contains("API_TOKEN=(set)"), "the settings are logged");
    for text in [metrics, audit, log] {
        assert!(!text.contains(TOKEN) && !text.contains(READ_TOKEN));
    }
    Ok(())
}
