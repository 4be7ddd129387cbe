//! Tests of the client over HTTP against the sandbox, which enforces the API's rules.

mod agreement;
mod conformance;
mod examples;
mod http;
mod lockout;
mod secrets;
mod upscale;

use std::io::Write;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use stability_client::{Client, ClientBuilder, Engine, Error, Observer, Retry, RetryPolicy, TextToImage};
use stability_sandbox::faults::FaultSpec;
use stability_sandbox::{Sandbox, Settings};

const PROMPT: &str = "A serene mountain landscape at sunset, cinematic lighting, 4k quality";

/// The log of all tests. One subscriber for all threads: tracing caches for all of them whether an event is of interest
/// to the thread that meets it first.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Writes log output to [`LOG`].
struct SharedLog;

impl Write for SharedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().expect("a lock").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What all tests have logged so far, with every detail.
fn logged() -> String {
    String::from_utf8_lossy(&LOG.lock().expect("a lock")).into_owned()
}

async fn sandbox() -> Sandbox {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let log = tracing_subscriber::fmt().with_writer(|| SharedLog).with_ansi(false);
        log.with_max_level(tracing::Level::TRACE).init();
    });
    Sandbox::start(Settings::default()).await.expect("a free port")
}

/// A builder with three retries, each after 10 ms. A 429 without `Retry-After` causes no pause.
fn builder(sandbox: &Sandbox, key: &str) -> ClientBuilder {
    let delays = [Duration::from_millis(10); 3];
    Client::builder(key)
        .base_url(sandbox.base_url())
        .request_timeout(Duration::from_secs(30))
        .retry_policy(RetryPolicy::default().delays(delays))
        .lockout(Duration::ZERO)
        .log_refused_prompts(true)
        .rate_limit(NonZeroU32::new(60_000).expect("not 0"))
}

fn client(sandbox: &Sandbox, key: &str) -> Client {
    builder(sandbox, key).build().expect("a valid key")
}

fn no_retries() -> RetryPolicy {
    RetryPolicy::none()
}

fn request() -> TextToImage {
    let frame = Engine::Sdxl10.dimensions_for(1920, 1080);
    TextToImage::new(Engine::Sdxl10, frame, PROMPT)
        .and_then(|request| request.negative_prompt("blurry, low quality, watermark"))
        .and_then(|request| request.cfg_scale(8.0))
        .and_then(|request| request.steps(40))
        .expect("a valid request")
}

/// Test 1. The sandbox rejects a wrong path, a missing key and a body without its required fields, so an image in the
/// response proves that all of them were right. The content of the body is covered by the unit tests of the request.
#[tokio::test]
async fn test_1_one_image_is_requested_and_can_be_decoded() {
    let sandbox = sandbox().await;
    let generated = client(&sandbox, "sk-sandbox").generate(&request()).await.expect("an image");
    assert_eq!((generated.usage.requests, generated.usage.possibly_charged), (1, 1));
    let image = generated.into_first().bytes;
    assert!(image.len() > 1_000);
    let picture = image::load_from_memory(&image).expect("a decodable image");
    assert_eq!((picture.width(), picture.height()), (1344, 768));
    let ledger = sandbox.ledger();
    assert_eq!(ledger.prompt_counts(PROMPT).requests, 1);
    assert_eq!((ledger.requests, ledger.charged), (1, 1));
}

#[tokio::test]
async fn slow_server_and_unreachable_server_have_different_errors() {
    let sandbox = sandbox().await;
    sandbox.set_latency(Duration::from_mins(1));
    let impatient =
        builder(&sandbox, "sk-sandbox").request_timeout(Duration::from_millis(100)).retry_policy(no_retries());
    let failure = impatient.build().expect("a client").generate(&request()).await.expect_err("a timeout");
    assert!(matches!(failure.error, Error::Timeout), "{:?}", failure.error);
    assert_eq!(failure.usage.possibly_charged, 1);
    let lost = builder(&sandbox, "sk-sandbox").retry_policy(no_retries()).build().expect("a client");
    drop(sandbox);
    let failure = lost.generate(&request()).await.expect_err("no server is listening");
    assert!(matches!(failure.error, Error::Connect(_) | Error::Interrupted(_)), "{:?}", failure.error);
}

#[tokio::test]
async fn account_status_reports_credits_and_listed_engine() {
    let sandbox = sandbox().await;
    sandbox.set_credits(41.5);
    let good = client(&sandbox, "sk-sandbox");
    assert!((good.balance().await.expect("credits").credits - 41.5).abs() < f64::EPSILON);
    let engines = good.engines().await.expect("engines");
    assert!(engines.iter().any(|engine| engine.id == Engine::Sdxl10.id()), "{engines:?}");
    let checked = good.check(Engine::Sdxl10).await.expect("the account check succeeds");
    assert_eq!((checked.credits, checked.engine_listed), (41.5, Some(true)));
    assert!(checked.is_ready());
    let checked = good.check(Engine::Core).await.expect("the account check succeeds");
    assert_eq!(checked.engine_listed, None, "the API lists no engines of v2beta");
    sandbox.set_credits(0.0);
    assert!(!good.check(Engine::Sdxl10).await.expect("the account check succeeds").is_ready());
    let stranger = client(&sandbox, "sk-other");
    let error = stranger.check(Engine::Sdxl10).await.expect_err("a wrong key");
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    assert_eq!(sandbox.ledger().charged, 0);
}

#[tokio::test]
async fn replaced_key_is_used_from_then_on() {
    let sandbox = sandbox().await;
    let client = client(&sandbox, "sk-revoked");
    let clone = client.clone();
    let failure = client.generate(&request()).await.expect_err("a wrong key");
    assert!(matches!(failure.error, Error::Unauthorized(_)), "{failure:?}");
    clone.replace_api_key("sk-sandbox").expect("a valid key");
    client.generate(&request()).await.expect("an image");
    let error = client.replace_api_key("sk-line\nbreak").expect_err("an invalid key").to_string();
    assert!(error.contains("not allowed in a header") && !error.contains("sk-"), "{error}");
    client.generate(&request()).await.expect("the former key stays");
}

#[tokio::test]
async fn requests_in_flight_stay_within_the_bound() {
    let sandbox = sandbox().await;
    sandbox.set_latency(Duration::from_millis(300));
    let client = client(&sandbox, "sk-sandbox");
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        callers.spawn(async move { client.generate(&request()).await.map(drop) });
    }
    for result in callers.join_all().await {
        result.expect("an image");
    }
    assert_eq!(sandbox.ledger().max_in_flight, 4);
}

#[derive(Default)]
struct RecordingObserver(Mutex<Vec<String>>);

impl Observer for RecordingObserver {
    fn on_retry(&self, retry: &Retry) {
        self.0.lock().expect("a lock").push(format!("{} {} {:?}", retry.attempt, retry.error_kind, retry.wait));
    }

    fn on_pause(&self, pause: Duration) {
        self.0.lock().expect("a lock").push(format!("paused {pause:?}"));
    }
}

#[tokio::test]
async fn observer_is_notified_of_every_retry_and_pause() {
    let sandbox = sandbox().await;
    for (fault, times) in [("status=500", 1), ("status=429:1", 1), ("drop", 1)] {
        let order = FaultSpec { fault: fault.to_owned(), times: Some(times), prompt_contains: None };
        sandbox.inject_fault(order).expect("a known fault");
    }
    let observed = Arc::new(RecordingObserver::default());
    let client = builder(&sandbox, "sk-sandbox").observer(observed.clone()).build().expect("a client");
    client.generate(&request()).await.expect("the fourth request succeeds");
    let observed = observed.0.lock().expect("a lock").clone();
    assert_eq!(observed, ["1 server 10ms", "paused 1s", "2 rate_limited 1s", "3 interrupted 10ms"]);
}
