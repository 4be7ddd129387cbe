//! Tests of the sandbox over HTTP.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use stability_sandbox::{Sandbox, Settings};

const ENGINE: &str = "stable-diffusion-xl-1024-v1-0";

struct TestApi {
    sandbox: Sandbox,
    http: Client,
}

impl TestApi {
    async fn start(settings: Settings) -> Self {
        // Fails only if a crypto provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder().no_proxy().timeout(Duration::from_mins(1)).build().expect("a client");
        Self { sandbox: Sandbox::start(settings).await.expect("a free port"), http }
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.sandbox.base_url())).bearer_auth("sk-sandbox")
    }

    fn post_generation(&self, body: &Value) -> RequestBuilder {
        self.post(&format!("v1/generation/{ENGINE}/text-to-image")).json(body)
    }

    async fn get(&self, path: &str, key: &str) -> Response {
        let url = format!("{}{path}", self.sandbox.base_url());
        self.http.get(url).bearer_auth(key).send().await.expect("a response")
    }
}

fn body(prompt: &str) -> Value {
    json!({"text_prompts": [{"text": prompt}], "width": 640, "height": 1536, "seed": 7})
}

/// Sends a request and returns status and name of the error response.
async fn send_for_error(request: RequestBuilder) -> (u16, String) {
    let answer = request.send().await.expect("a response");
    let status = answer.status().as_u16();
    let error: Value = answer.json().await.expect("the API's error body");
    assert!(error["id"].is_string() && error["message"].is_string(), "{error}");
    (status, error["name"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn json_and_binary_responses_carry_the_same_image() {
    use base64::Engine as _;
    let api = TestApi::start(Settings::default()).await;
    let answer: Value =
        api.post_generation(&body("A fox")).send().await.expect("a response").json().await.expect("JSON");
    let artifact = &answer["artifacts"][0];
    assert_eq!((&artifact["finishReason"], &artifact["seed"]), (&json!("SUCCESS"), &json!(7)));
    let encoded = artifact["base64"].as_str().expect("base64");
    let from_json = base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64");

    let answer = api.post_generation(&body("A fox")).header("accept", "image/png").send().await.expect("a response");
    assert_eq!(answer.headers()["finish-reason"], "SUCCESS");
    assert_eq!(answer.headers()["seed"], "7");
    assert_eq!(answer.headers()["content-type"], "image/png");
    let from_image = answer.bytes().await.expect("a body");
    assert_eq!(from_json, from_image);
    let picture = image::load_from_memory(&from_image).expect("a PNG");
    assert_eq!((picture.width(), picture.height()), (640, 1536));
}

#[tokio::test]
async fn rejected_request_returns_the_api_error_and_is_not_charged() {
    let api = TestApi::start(Settings { credits: 3.0, ..Settings::default() }).await;
    let check = async |request: RequestBuilder, status: u16, name: &str| {
        assert_eq!(send_for_error(request).await, (status, name.to_owned()));
    };
    let path = format!("v1/generation/{ENGINE}/text-to-image");
    let url = format!("{}{path}", api.sandbox.base_url());
    check(api.http.post(&url).bearer_auth("sk-other").json(&body("A fox")), 401, "unauthorized").await;
    check(api.http.post(&url).json(&body("A fox")), 401, "unauthorized").await;
    check(api.post("v1/generation/gone/text-to-image").json(&body("A fox")), 404, "not_found").await;
    check(api.post("v1/nowhere"), 404, "not_found").await;
    check(api.http.put(&url), 405, "method_not_allowed").await;
    check(api.post(&path).body(vec![b' '; 2 * 1024 * 1024]), 413, "payload_too_large").await;
    check(api.post_generation(&body("A gory fight")), 400, "invalid_prompts").await;
    check(api.post_generation(&body("A fox [fault:status=422]")), 422, "unprocessable_entity").await;
    let mut several = body("A fox");
    several["samples"] = json!(2);
    check(api.post_generation(&several).header("accept", "image/png"), 400, "invalid_samples").await;
    check(api.post_generation(&body("A fox")).header("accept", "image/webp"), 400, "bad_request").await;
    // The first image costs two of three credits, so that a second one cannot be paid for.
    api.post_generation(&body("A fox")).send().await.expect("a response").error_for_status().expect("an image");
    check(api.post_generation(&body("A fox")), 402, "payment_required").await;
    assert_eq!(api.sandbox.ledger().charged, 1);
    let balance: Value = api.get("v1/user/balance", "sk-sandbox").await.json().await.expect("JSON");
    assert_eq!(balance, json!({"credits": 1.0}));
}

#[tokio::test]
async fn exceeding_the_rate_limit_locks_out_the_caller() {
    let api = TestApi::start(Settings { limit: 2, ..Settings::default() }).await;
    let mut errors = Vec::new();
    for _ in 0..4 {
        errors.push(send_for_error(api.post_generation(&json!({}))).await);
    }
    let named = |status: u16, name: &str| (status, name.to_owned());
    let (bad, locked_out) = (named(400, "bad_request"), named(429, "rate_limit_exceeded"));
    assert_eq!(errors, [bad.clone(), bad, locked_out.clone(), locked_out]);
}

#[tokio::test]
async fn faults_and_ledger_are_available_over_http() {
    let api = TestApi::start(Settings::default()).await;
    let unknown = api.post("_sandbox/faults").json(&json!({"fault": "explode"}));
    assert_eq!(send_for_error(unknown).await.0, 400);
    let spec = json!({"fault": "status=429:7", "prompt_contains": "fox"});
    api.post("_sandbox/faults").json(&spec).send().await.expect("a response").error_for_status().expect("accepted");
    let answer = api.post_generation(&body("A fox")).send().await.expect("a response");
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (429, &b"7"[..]));
    let clear = api.http.delete(format!("{}_sandbox/faults", api.sandbox.base_url()));
    clear.send().await.expect("a response").error_for_status().expect("the faults are cleared");
    api.post_generation(&body("A fox")).send().await.expect("a response").error_for_status().expect("an image");
    let ledger: Value = api.get("_sandbox/ledger", "").await.json().await.expect("JSON");
    assert_eq!((&ledger["requests"], &ledger["charged"]), (&json!(2), &json!(1)));
    assert_eq!(ledger["by_status"], json!({"200": 1, "429": 1}));
    assert_eq!(
        ledger["by_prompt"]["A fox"],
        json!({"requests": 2, "charged": 1, "upscale_requests": 0, "upscaled": 0})
    );
}

#[tokio::test]
async fn filtered_image_is_blurred() {
    let api = TestApi::start(Settings::default()).await;
    let generate = async |prompt: &str| {
        let answer = api.post_generation(&body(prompt)).header("accept", "image/png").send().await.expect("a response");
        let reason = answer.headers()["finish-reason"].to_str().expect("text").to_owned();
        (reason, image::load_from_memory(&answer.bytes().await.expect("a body")).expect("a PNG").into_rgb8())
    };
    let (reason, withheld) = generate("A fox [fault:filtered]").await;
    assert_eq!(reason, "CONTENT_FILTERED");
    assert!(max_neighbour_difference(&withheld) < 10, "not blurred: {}", max_neighbour_difference(&withheld));
    let (reason, clear) = generate("A fox").await;
    assert_eq!(reason, "SUCCESS");
    assert!(max_neighbour_difference(&clear) > 60, "{}", max_neighbour_difference(&clear));
}

/// The largest difference in green between two neighbouring pixels of a row.
fn max_neighbour_difference(picture: &image::RgbImage) -> u8 {
    let rows = picture.rows().map(|row| {
        let values: Vec<u8> = row.map(|pixel| pixel.0[1]).collect();
        values.windows(2).map(|pair| pair[0].abs_diff(pair[1])).max().unwrap_or_default()
    });
    rows.max().unwrap_or_default()
}
