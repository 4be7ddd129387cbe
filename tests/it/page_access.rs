//! Who may see and send what on the pages: login, roles, forged requests, and texts that are code.

use anyhow::{Context, Result};
use dev_services::wait::wait_until;
use integration_tests::{Answer, ApiClient, ApiServer, Browser, Database, TestEnv, WAIT_TIMEOUT};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::api::{new_env, submit, wait_for_end};

const TOKEN: &str = "4f1c9e0b7d2a4c6f8e1d";
const READ_TOKEN: &str = "0a9b8c7d6e5f40312233";

async fn open_with_tokens() -> Result<(TestEnv, ApiServer)> {
    let mut env = new_env(Database::Sqlite).await?;
    env.set("API_TOKEN", TOKEN);
    env.set("API_READ_TOKEN", READ_TOKEN);
    let api = env.start_api().await?;
    Ok((env, api))
}

/// The forms of the pages, but those for the login.
fn forms() -> Vec<String> {
    let id = Uuid::nil();
    [
        "/jobs/cancel",
        "/jobs/retry",
        "/jobs/new",
        "/jobs/estimate",
        "/jobs/{id}/cancel",
        "/jobs/{id}/retry",
        "/jobs/{id}/images/1/redo",
        "/dead-letters/replay",
        "/dead-letters/discard",
        "/account/pause",
        "/account/resume",
        "/account/style",
        "/account/style/clear",
    ]
    .map(|path| path.replace("{id}", &id.to_string()))
    .to_vec()
}

/// The pages that anyone who is logged in sees.
fn screens() -> [&'static str; 4] {
    ["/", "/jobs", "/dead-letters", "/account"]
}

async fn press_login(browser: &Browser, token: &str) -> Result<()> {
    browser.fill("#token", token).await?;
    browser.press("Log in").await
}

#[tokio::test]
async fn login_shows_what_the_token_allows() -> Result<()> {
    let (env, api) = open_with_tokens().await?;
    let id = submit(&api, &["A fox"], json!({})).await?;
    let browser = Browser::open(&api).await?;
    browser.goto("/jobs?status=waiting").await?;
    assert!(browser.path().await?.starts_with("/login?next="), "no page without a login");
    press_login(&browser, "a wrong token").await?;
    assert_eq!(browser.text("#token-error").await?, "the token is not valid");
    press_login(&browser, READ_TOKEN).await?;
    assert_eq!(browser.path().await?, "/jobs?status=waiting", "the page that was asked for");

    // Reads everything, and sees no button but that of the filter and of the logout.
    let mut pages = screens().map(str::to_owned).to_vec();
    pages.extend([format!("/jobs/{id}"), format!("/jobs/{id}/images/1")]);
    for page in &pages {
        browser.goto(page).await?;
        assert_eq!(browser.count("main form[method=post], main input[type=checkbox][name]").await?, 0, "{page}");
    }
    assert_eq!(browser.count("a[href='/jobs/new']").await?, 0);
    // The cookie is valid for the event streams, which have no header for a token.
    browser.goto(&format!("/jobs/{id}")).await?;
    let _worker = env.start_ready_worker().await?;
    browser.wait_for_text("dl.facts", "completed\n").await?;

    // A link in a chat or a mail leads to the page, and not to the login.
    browser.follow_from_another_site("/jobs?status=completed").await?;
    browser.wait_for_text("h1", "Jobs").await?;
    assert_eq!(browser.path().await?, "/jobs?status=completed");
    browser.press("Log out").await?;
    assert_eq!(browser.path().await?, "/login");
    browser.goto("/").await?;
    assert!(browser.path().await?.starts_with("/login"));
    press_login(&browser, TOKEN).await?;
    browser.goto("/account").await?;
    browser.press("Pause all workers").await?;
    assert_eq!(api.get("/v1/account").await?.json()["gate"]["is_open"], false);
    let audit = env.query_rows("SELECT role FROM audit WHERE action = 'pause'").await?;
    assert_eq!(audit, [json!({"role": "full"})]);
    browser.close_allowing(&["status of 401"]).await
}

/// A visitor without a browser, with the cookie and the form token of a session.
struct Visitor {
    client: ApiClient,
    cookie: String,
    form_token: String,
}

/// The cookie of this name that an answer sets, with its attributes; empty if it sets none.
fn cookie_of<'a>(answer: &'a Answer, name: &str) -> &'a str {
    let cookies = answer.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok());
    cookies.into_iter().find(|cookie| cookie.starts_with(&format!("{name}="))).unwrap_or_default()
}

/// The cookies that an answer sets, as a browser sends them back.
fn sent_back(answer: &Answer) -> String {
    let cookies = ["asset_worker_form", "asset_worker_session"].map(|name| cookie_of(answer, name));
    cookies.map(|cookie| cookie.split(';').next().unwrap_or_default()).join("; ")
}

/// The token in the first form of a page.
fn form_token_of(answer: &Answer) -> String {
    let page = String::from_utf8_lossy(&answer.body).into_owned();
    let token = page.split("name=\"form_token\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    token.unwrap_or_default().to_owned()
}

impl Visitor {
    /// Opens the pages without a token.
    async fn local(api: &ApiClient) -> Result<Self> {
        let page = api.get("/account").await?;
        let client = api.without_redirects()?;
        Ok(Self { client, cookie: sent_back(&page), form_token: form_token_of(&page) })
    }

    /// Logs in with a token.
    async fn log_in(api: &ApiClient, token: &str) -> Result<Self> {
        let client = api.without_redirects()?;
        let login = client.get("/login").await?;
        let stranger = Self { client, cookie: sent_back(&login), form_token: form_token_of(&login) };
        let answer = stranger.post("/login", &[("token", token)], &[]).await?;
        assert_eq!(answer.status, 303, "{answer:?}");
        // The cookie of forms stays.
        let cookie = format!("{}; {}", stranger.cookie, sent_back(&answer));
        let visitor = Self { cookie, ..stranger };
        let jobs = visitor.get("/jobs").await?;
        assert_eq!((jobs.status, form_token_of(&jobs)), (200, visitor.form_token.clone()));
        Ok(visitor)
    }

    /// Posts a form of the session.
    async fn post(&self, path: &str, fields: &[(&str, &str)], headers: &[(&'static str, &str)]) -> Result<Answer> {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("form_token", &self.form_token).extend_pairs(fields);
        let mut request = self.client.request(Method::POST, path).header("cookie", &self.cookie);
        request = request.header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.send(request.body(form.finish())).await
    }

    async fn get(&self, path: &str) -> Result<Answer> {
        self.client.send(self.client.request(Method::GET, path).header("cookie", &self.cookie)).await
    }
}

#[tokio::test]
async fn read_only_session_is_refused_every_form() -> Result<()> {
    let routes = include_str!("../../crates/worker/src/pages.rs");
    // Besides these: the login and the logout.
    assert_eq!(routes.matches("post(").count(), forms().len() + 2, "every form is in the list");
    let (env, api) = open_with_tokens().await?;
    let (reader, full) = (Visitor::log_in(&api, READ_TOKEN).await?, Visitor::log_in(&api, TOKEN).await?);
    for path in forms() {
        let answer = reader.post(&path, &[], &[]).await?;
        assert_eq!((answer.status, answer.header("content-type")), (403, "text/html; charset=utf-8"), "{path}");
        assert!(![401, 403].contains(&full.post(&path, &[], &[]).await?.status), "{path}");
    }
    assert_eq!(reader.get("/jobs/new").await?.status, 403);
    let roles = env.query_rows("SELECT DISTINCT role FROM audit").await?;
    assert_eq!(roles, [json!({"role": "full"})], "nothing was changed by the reader");
    Ok(())
}

#[tokio::test]
async fn forged_forms_are_refused() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let (own, other) = (Visitor::local(&api).await?, Visitor::local(&api).await?);
    assert_ne!(own.form_token, other.form_token);
    let forged = |form_token: &str, cookie: &str| Visitor {
        client: own.client.clone(),
        cookie: cookie.to_owned(),
        form_token: form_token.to_owned(),
    };
    for path in forms() {
        // No token, that of another session, and that of this session without its cookie.
        for visitor in [forged("", &own.cookie), forged(&other.form_token, &own.cookie), forged(&own.form_token, "")] {
            assert_eq!(visitor.post(&path, &[], &[]).await?.status, 403, "{path}");
        }
        // The right token, but from a page of another origin.
        let answer = own.post(&path, &[], &[("origin", "https://example.org")]).await?;
        assert_eq!(answer.status, 403, "{path}");
        // JSON is no form: a page of another origin can send it without asking first only as text.
        let request = own.client.request(Method::POST, &path).header("cookie", &own.cookie);
        let answer = own.client.send(request.header("content-type", "text/plain").body("{}")).await?;
        assert_eq!(answer.status, 415, "{path}");
    }
    assert_eq!(env.query_rows("SELECT action FROM audit").await?, Vec::<Value>::new());
    // Nor is one of very many fields, or one that is followed as a link.
    let many = vec![("job", "x"); 2_000];
    assert_eq!(own.post("/jobs/cancel", &many, &[]).await?.status, 413);
    let linked = own.get("/account/pause").await?;
    assert_eq!((linked.status, linked.header("content-type")), (405, "text/html; charset=utf-8"));
    let origin = format!("http://{}", api.address());
    assert_eq!(own.post("/account/pause", &[], &[("origin", &origin)]).await?.status, 303);
    Ok(())
}

#[tokio::test]
async fn session_reads_the_api_but_changes_nothing_there() -> Result<()> {
    let (_env, api) = open_with_tokens().await?;
    let full = Visitor::log_in(&api, TOKEN).await?;
    assert_eq!(full.get("/v1/jobs").await?.status, 200);
    let request = full.client.request(Method::POST, "/v1/account/pause").header("cookie", &full.cookie);
    let answer = full.client.send(request.header("content-type", "application/json").body("{}")).await?;
    assert_eq!(answer.status, 401, "a change needs the token itself");
    let logout = full.post("/logout", &[], &[]).await?;
    assert!(cookie_of(&logout, "asset_worker_session").contains("Max-Age=0"), "the browser forgets it");
    // A changed one is none.
    let forged = Visitor { cookie: full.cookie.replace("=full", "=read_only"), ..full };
    assert_eq!(forged.get("/v1/jobs").await?.status, 401);
    Ok(())
}

#[tokio::test]
async fn cookie_is_out_of_reach_of_scripts_and_other_sites() -> Result<()> {
    let (_env, api) = open_with_tokens().await?;
    let client = api.without_redirects()?;
    let login = client.get("/login").await?;
    assert!(cookie_of(&login, "asset_worker_form").ends_with("; HttpOnly; SameSite=Lax; Path=/"), "{login:?}");
    assert_eq!(cookie_of(&login, "asset_worker_session"), "");
    let stranger = Visitor { client, cookie: sent_back(&login), form_token: form_token_of(&login) };
    let host = format!("https://{}", api.address());
    let answer = stranger.post("/login", &[("token", TOKEN)], &[("origin", &host)]).await?;
    let session = cookie_of(&answer, "asset_worker_session");
    assert!(session.ends_with("; HttpOnly; SameSite=Strict; Secure; Path=/"), "{answer:?}");
    let answer_over_http = stranger.post("/login", &[("token", TOKEN)], &[]).await?;
    assert!(cookie_of(&answer_over_http, "asset_worker_session").ends_with("; HttpOnly; SameSite=Strict; Path=/"));
    assert_eq!(answer.header("location"), "/");
    for next in ["https://example.org", "//example.org", "/\\example.org"] {
        let answer = stranger.post("/login", &[("token", TOKEN), ("next", next)], &[]).await?;
        assert_eq!(answer.header("location"), "/", "{next}");
    }
    // Guesses count together with those at the API.
    for _ in 0..5 {
        assert_eq!(stranger.post("/login", &[("token", "wrong")], &[]).await?.status, 401);
        assert_eq!(api.with_token(Some("wrong")).get("/v1/jobs").await?.status, 401);
    }
    let refused = stranger.post("/login", &[("token", TOKEN)], &[]).await?;
    assert_eq!(refused.status, 429);
    assert!(
        !refused.header("retry-after").is_empty() && String::from_utf8_lossy(&refused.body).contains("try again in")
    );
    Ok(())
}

#[tokio::test]
async fn pages_bound_what_a_browser_loads() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    for path in ["/", "/jobs", "/jobs/new", "/dead-letters", "/account", "/jobs/x"] {
        let page = api.get(path).await?;
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!((page.header("cache-control"), page.header("x-content-type-options")), ("no-store", "nosniff"));
        let text = String::from_utf8_lossy(&page.body);
        for attribute in ["src=\"", "href=\"", "action=\"", "hx-get=\"", "hx-post=\""] {
            for target in text.split(attribute).skip(1) {
                let is_own = target.starts_with('/') && !target.starts_with("//") || target.starts_with('#');
                assert!(is_own, "{path}: {attribute}{}", target.chars().take(60).collect::<String>());
            }
        }
        assert!(!text.contains(" style=") && !text.contains("onclick"), "{path} has code or styles of its own");
    }
    let css = api.get("/static/style.css").await?;
    assert_eq!((css.status, css.header("content-type")), (200, "text/css; charset=utf-8"));
    // During an upgrade, a page of another version must not make a browser keep this file.
    assert_eq!(css.header("cache-control"), "no-cache");
    let overview = String::from_utf8_lossy(&api.get("/").await?.body).into_owned();
    let linked = overview.split("href=\"/static/style.css").nth(1).and_then(|rest| rest.split('"').next());
    let linked = api.get(&format!("/static/style.css{}", linked.context("a link")?)).await?;
    assert!(linked.header("cache-control").contains("immutable"));
    assert_eq!(api.get("/static/..%2fstyle.css").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn browser_loads_nothing_from_elsewhere() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let browser = Browser::open(&api).await?;
    browser.goto("/").await?;
    let load = "const done = arguments[arguments.length - 1]; \
        const picture = new Image(); picture.onload = picture.onerror = (event) => done(event.type); \
        picture.src = 'http://127.0.0.2:1/x.png'; document.body.append(picture);";
    let loaded = browser.client().execute_async(load, Vec::new()).await?;
    assert_eq!(loaded, "error");
    browser.run("const added = document.createElement('script'); added.textContent = 'window.attacked = 1'; document.body.append(added)").await?;
    assert_eq!(browser.run("return window.attacked ?? null").await?, Value::Null);
    let errors = browser.errors().await?.join("\n");
    for directive in ["img-src 'self'", "script-src 'self'"] {
        assert!(errors.contains(directive), "{errors}");
    }
    browser.close().await
}

#[tokio::test]
async fn link_from_another_site_keeps_the_session() -> Result<()> {
    let (_env, api) = open_with_tokens().await?;
    let visitor = Visitor::log_in(&api, TOKEN).await?;
    // The browser leaves out the session, and says where the link was.
    let form_cookie = visitor.cookie.split(';').next().unwrap_or_default();
    let request = visitor.client.request(Method::GET, "/jobs?status=failed").header("cookie", form_cookie);
    let answer = visitor.client.send(request.header("sec-fetch-site", "cross-site")).await?;
    let page = String::from_utf8_lossy(&answer.body);
    assert!(page.contains("content=\"0;url=/jobs?status=failed\""), "{page}");
    assert!(!answer.headers.contains_key("set-cookie"), "no cookie is replaced");
    // Browsers that do not say so are sent to the login, and keep the session too.
    let request = visitor.client.request(Method::GET, "/jobs").header("cookie", form_cookie);
    let answer = visitor.client.send(request).await?;
    assert_eq!((answer.status, answer.headers.contains_key("set-cookie")), (303, false));
    Ok(())
}

#[tokio::test]
async fn slow_logins_take_no_place_from_others() -> Result<()> {
    let (_env, api) = open_with_tokens().await?;
    let visitor = Visitor::log_in(&api, TOKEN).await?;
    let mut slow = Vec::new();
    for _ in 0..70 {
        let mut stream = TcpStream::connect(api.address()).await?;
        let head = format!(
            "POST /login HTTP/1.1\r\nhost: {}\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 100\r\n\r\n",
            api.address()
        );
        stream.write_all(head.as_bytes()).await?;
        slow.push(stream);
    }
    // Logins are busy, which shows that the others wait for their bodies.
    wait_until("busy logins", WAIT_TIMEOUT, async || {
        (visitor.client.get("/login").await.ok()?.status == 503).then_some(())
    })
    .await?;
    assert_eq!((api.get("/v1/jobs").await?.status, visitor.get("/jobs").await?.status), (200, 200));
    drop(slow);
    Ok(())
}

#[tokio::test]
async fn texts_are_never_code() -> Result<()> {
    let env = new_env(Database::Sqlite).await?;
    let api = env.start_api().await?;
    let attack =
        "<img src=x onerror=\"window.attacked=1\"><script>window.attacked=1</script>\"' onmouseover=window.attacked=1";
    let browser = Browser::open(&api).await?;
    let worker = env.start_ready_worker().await?;
    let failing = format!("{attack} [fault:status=500 x2]");
    let id = submit(&api, &[attack, &failing], json!({"min_success_rate": 0.5, "style_modifiers": [attack]})).await?;
    wait_for_end(&api, &id).await?;
    env.execute(&format!(
        "UPDATE assets SET error_message = '{}' WHERE error_code IS NOT NULL",
        attack.replace('\'', "''")
    ))
    .await?;
    env.execute(&format!("UPDATE jobs SET error_code = 'expired', error_message = '{}'", attack.replace('\'', "''")))
        .await?;
    let producer = env.connect_broker().await?;
    let mut headers = FieldTable::default();
    headers.insert(attack.chars().take(100).collect::<String>().into(), AMQPValue::LongString(attack.into()));
    let properties = BasicProperties::default().with_headers(headers);
    producer.publish_with_properties(json!({"job_id": attack}).to_string().as_bytes(), properties).await?;
    wait_until("the dead letter", WAIT_TIMEOUT, async || {
        let letters = api.get("/v1/dead-letters").await.ok()?.json();
        (!letters["dead_letters"].as_array()?.is_empty()).then_some(())
    })
    .await?;
    drop(worker);
    api.post("/v1/account/pause", &json!({"reason": attack})).await?;
    api.post(&format!("/v1/jobs/{}/cancel", Uuid::now_v7()), &json!({"reason": attack})).await?;
    let letters = api.get("/v1/dead-letters").await?.json();
    let letter_id = letters["dead_letters"][0]["id"].as_str().context("a dead letter")?.to_owned();
    let query = url::form_urlencoded::byte_serialize(attack.as_bytes()).collect::<String>();
    for page in [
        "/".to_owned(),
        format!("/jobs?description={query}"),
        format!("/jobs/{id}"),
        format!("/jobs/{id}/images/1"),
        format!("/jobs/{id}/images/2"),
        "/dead-letters".to_owned(),
        format!("/dead-letters/{letter_id}"),
        "/account".to_owned(),
    ] {
        browser.goto(&page).await?;
        // The list of jobs shows it only in the field of its filter.
        let is_shown = browser.text("main").await?.contains("window.attacked=1");
        assert!(is_shown || page.starts_with("/jobs?"), "{page} shows the text");
        assert_eq!(browser.run("return window.attacked ?? null").await?, Value::Null, "{page}");
        let added = "img[src=x], main script, [onmouseover], [onerror]";
        assert_eq!(browser.count(added).await?, 0, "{page}");
    }
    browser.goto(&format!("/dead-letters/{letter_id}")).await?;
    let headers = browser.text("section.card").await?;
    assert_eq!(headers.matches("onmouseover=window.attacked=1").count(), 1, "the header is shown: {headers}");
    // The policy has refused nothing, because there was nothing to refuse.
    browser.close().await
}
