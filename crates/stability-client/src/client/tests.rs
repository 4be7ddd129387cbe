//! Tests of the client with a scripted transport, in paused time.

mod call_options;
mod responses;
mod unusable_images;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::{Mutex, Once, OnceLock};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::*;
use crate::engine::Engine;
use crate::quota::GovernorQuota;
use crate::response;

type Script = VecDeque<Result<HttpResponse, Error>>;

/// Returns the responses of a script in order, and records the requests. Panics if a request exceeds the script.
#[derive(Default)]
struct ScriptedTransport {
    script: Mutex<Script>,
    sent: Mutex<Vec<(Duration, HttpRequest)>>,
    first_sent_at: OnceLock<Instant>,
}

#[async_trait]
impl Transport for Arc<ScriptedTransport> {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Error> {
        let at = self.first_sent_at.get_or_init(Instant::now).elapsed();
        self.sent.lock().unwrap().push((at, request));
        self.script.lock().unwrap().pop_front().expect("the script has a response for each request")
    }
}

impl ScriptedTransport {
    fn sent_seconds(&self) -> Vec<f64> {
        assert!(self.script.lock().unwrap().is_empty(), "the script has unused responses");
        self.sent.lock().unwrap().iter().map(|(at, _)| at.as_secs_f64().round()).collect()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a script contains responses and errors")]
fn ok_response() -> Result<HttpResponse, Error> {
    let body = json!({"artifacts": [{"base64": "iVBORw0KGgoAAAAASUVORK5CYII=", "seed": 7, "finishReason": "SUCCESS"}]});
    Ok(HttpResponse { status: 200, body: body.to_string().into(), ..HttpResponse::default() })
}

#[expect(clippy::unnecessary_wraps, reason = "a script contains responses and errors")]
fn response(status: u16, body: &Value) -> Result<HttpResponse, Error> {
    Ok(HttpResponse { status, body: body.to_string().into(), ..HttpResponse::default() })
}

#[expect(clippy::unnecessary_wraps, reason = "a script contains responses and errors")]
fn rate_limited(retry_after: Option<u64>) -> Result<HttpResponse, Error> {
    let body = json!({"message": "Rate limit exceeded"}).to_string().into();
    Ok(HttpResponse { status: 429, retry_after: retry_after.map(Duration::from_secs), body, ..HttpResponse::default() })
}

fn client(script: impl Into<Script>, lockout_s: u64) -> (Client, Arc<ScriptedTransport>) {
    ThreadLog::install();
    let transport = Arc::new(ScriptedTransport { script: Mutex::new(script.into()), ..ScriptedTransport::default() });
    let inner = Inner {
        transport: Box::new(transport.clone()),
        quota: Arc::new(GovernorQuota::default()),
        scheduler: FairScheduler::new(NonZeroUsize::new(4).expect("4 is not 0")),
        retry_policy: RetryPolicy::default(),
        lockout: Duration::from_secs(lockout_s),
        response_format: ResponseFormat::Json,
        log_refused_prompts: true,
        observers: Vec::new(),
    };
    (Client { inner: Arc::new(inner) }, transport)
}

/// Number of requests, and of those that may have been charged.
fn request_counts(usage: &Usage) -> (u32, u32) {
    (usage.requests, usage.possibly_charged)
}

fn request() -> TextToImage {
    let frame = Engine::Sdxl10.dimensions_for(1920, 1080);
    TextToImage::new(Engine::Sdxl10, frame, "A city street").expect("a valid request")
}

thread_local! {
    /// What the running test logged: each test has one thread and a current-thread runtime.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes log output to [`LOG`].
struct ThreadLog;

impl ThreadLog {
    /// Installs one subscriber for all tests, before the first event. A subscriber for each thread would miss events
    /// now and then: tracing caches for all threads whether an event is of interest to the thread that meets it first.
    fn install() {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| tracing_subscriber::fmt().with_writer(|| ThreadLog).with_ansi(false).init());
        LOG.take();
    }

    fn text() -> String {
        String::from_utf8(LOG.with_borrow(Clone::clone)).expect("log output is UTF-8")
    }
}

impl Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Test 2, with the default rate-limit pause set to zero.
#[tokio::test(start_paused = true)]
async fn test_2_429s_are_retried_after_2_and_5_seconds() {
    let (client, transport) = client([rate_limited(None), rate_limited(None), ok_response()], 0);
    let generated = client.generate(&request()).await.expect("the third request succeeds");
    assert_eq!(request_counts(&generated.usage), (3, 1));
    assert_eq!(generated.into_first().bytes.len(), 20);
    assert_eq!(transport.sent_seconds(), [0.0, 2.0, 7.0]);
    assert_eq!(ThreadLog::text().matches("rate limit exceeded, retrying").count(), 2, "{}", ThreadLog::text());
}

#[tokio::test(start_paused = true)]
async fn lockout_wait_uses_no_retry() {
    let server = || response(500, &json!({}));
    let script = [rate_limited(None), server(), server(), rate_limited(Some(90)), server(), ok_response()];
    let (client, transport) = client(script, 60);
    client.generate(&request()).await.expect("three retries are enough");
    assert_eq!(transport.sent_seconds(), [0.0, 60.0, 62.0, 67.0, 157.0, 167.0]);
}

/// `Retry-After` of 0, which is also that of a date in the past, and one that is shorter than the retry delay.
#[tokio::test(start_paused = true)]
async fn rate_limit_shorter_than_the_lockout_is_a_retry() {
    for seconds in [0, 1] {
        let script = [rate_limited(Some(seconds)), rate_limited(Some(seconds)), ok_response()];
        let (client, transport) = client(script, 60);
        client.generate(&request()).await.expect("two retries are enough");
        assert_eq!(transport.sent_seconds(), [0.0, 2.0, 7.0], "{seconds}");
    }
    let (client, transport) = client([const { Some(30) }; 4].map(rate_limited), 60);
    let error = client.generate(&request()).await.expect_err("three retries are used up");
    assert_eq!((error.error.kind(), error.usage.retries), ("rate_limited", 3));
    assert_eq!(transport.sent_seconds(), [0.0, 30.0, 60.0, 90.0]);
}

#[tokio::test(start_paused = true)]
async fn with_a_lockout_of_zero_each_rate_limit_is_a_retry() {
    let (client, transport) = client([rate_limited(None), rate_limited(Some(20)), ok_response()], 0);
    client.generate(&request()).await.expect("two retries are enough");
    assert_eq!(transport.sent_seconds(), [0.0, 2.0, 22.0]);
}

#[tokio::test(start_paused = true)]
async fn transient_failure_is_retried_three_times() {
    let failures = || {
        vec![
            Err(Error::Connect("refused".into())),
            Err(Error::Timeout),
            Err(Error::Interrupted("reset".into())),
            response(503, &json!({})),
        ]
    };
    let (client, transport) = client(failures(), 60);
    let error = client.generate(&request()).await.expect_err("all four requests fail");
    assert_eq!(error.error.kind(), "server");
    assert_eq!(request_counts(&error.usage), (4, 2));
    assert_eq!(transport.sent_seconds(), [0.0, 2.0, 7.0, 17.0]);
}

#[tokio::test(start_paused = true)]
async fn longer_of_retry_after_and_delay_is_used() {
    let busy = |seconds| {
        let retry_after = Some(Duration::from_secs(seconds));
        Ok(HttpResponse { status: 503, retry_after, ..HttpResponse::default() })
    };
    let (client, transport) = client([busy(20), busy(1), busy(0), ok_response()], 60);
    client.generate(&request()).await.expect("the fourth request succeeds");
    assert_eq!(transport.sent_seconds(), [0.0, 20.0, 25.0, 35.0]);
}

#[tokio::test(start_paused = true)]
async fn rate_limit_pause_beyond_the_total_timeout_ends_the_call() {
    let (client, transport) = client([rate_limited(Some(200)), rate_limited(Some(200))], 60);
    let error = client.generate(&request()).await.expect_err("two pauses of 200 s exceed 5 minutes");
    assert_eq!(error.error.kind(), "rate_limited");
    assert_eq!(transport.sent_seconds(), [0.0, 200.0]);
}

#[tokio::test(start_paused = true)]
async fn retry_delay_beyond_the_total_timeout_ends_the_call() {
    let busy = HttpResponse { status: 503, retry_after: Some(Duration::from_secs(301)), ..HttpResponse::default() };
    let (client, transport) = client([Ok(busy)], 60);
    let error = client.generate(&request()).await.expect_err("a wait of 301 s exceeds 5 minutes");
    assert_eq!(error.usage, Usage { requests: 1, ..Usage::default() });
    assert_eq!(transport.sent_seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn quota_wait_ends_at_the_total_timeout() {
    let (client, transport) = client([], 60);
    let start = Instant::now();
    client.inner.quota.pause(start + Duration::from_hours(1)).await;
    let error = client.generate(&request()).await.expect_err("a pause of an hour exceeds 5 minutes");
    assert_eq!((error.error.kind(), error.usage), ("quota", Usage::default()));
    assert_eq!(start.elapsed(), Duration::from_mins(5));
    assert!(transport.sent_seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn unfinished_or_undecodable_response_is_retried_and_counted_as_charged() {
    let unfinished = json!({"artifacts": [{"base64": "", "finishReason": "ERROR"}]});
    let script = [response(200, &unfinished), response(200, &json!("<html>")), ok_response()];
    let (client, transport) = client(script, 60);
    let generated = client.generate(&request()).await.expect("the third request succeeds");
    assert_eq!(request_counts(&generated.usage), (3, 3));
    assert_eq!(transport.sent_seconds(), [0.0, 2.0, 7.0]);
}

/// Test 3.
#[tokio::test(start_paused = true)]
async fn test_3_content_policy_refusal_is_logged_and_not_retried() {
    let (client, transport) = client([response(400, &json!({"message": "Content policy violation"}))], 60);
    let error = client.generate(&request()).await.expect_err("the prompt is refused");
    assert!(matches!(error.error, Error::ContentPolicy(_)), "{error:?}");
    assert!(error.error.to_string().contains("Content policy violation"), "{}", error.error);
    assert_eq!(transport.sent_seconds(), [0.0]);
    assert_eq!(ThreadLog::text().matches("A city street").count(), 1, "{}", ThreadLog::text());
}

#[tokio::test(start_paused = true)]
async fn refused_prompt_is_not_logged_unless_asked_for() {
    let (mut client, _) = client([response(400, &json!({"message": "Content policy violation"}))], 60);
    Arc::get_mut(&mut client.inner).expect("the only clone").log_refused_prompts = false;
    let error = client.generate(&request()).await.expect_err("the prompt is refused");
    assert_eq!(
        error.to_string(),
        "the prompt is refused by content policy (400 (no name): Content policy violation) (requests sent: 1)"
    );
    assert!(!ThreadLog::text().contains("A city street"), "{}", ThreadLog::text());
}

#[tokio::test(start_paused = true)]
async fn filtered_image_is_an_error() {
    let body = json!({"artifacts": [{"base64": "iVBORw0KGgoAAAAASUVORK5CYII=", "seed": 7, "finishReason": "CONTENT_FILTERED"}]});
    let (client, transport) = client([response(200, &body)], 60);
    let error = client.generate(&request()).await.expect_err("the image is filtered");
    assert_eq!(ThreadLog::text().matches("A city street").count(), 1, "{}", ThreadLog::text());
    assert!(matches!(error.error, Error::Filtered), "{error:?}");
    assert_eq!(request_counts(&error.usage), (1, 1));
    assert_eq!(transport.sent_seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn prompt_is_logged_only_if_refused() {
    let (client, _) = client([response(500, &json!({})), ok_response()], 60);
    client.generate(&request()).await.expect("the second request succeeds");
    assert!(ThreadLog::text().contains("request failed, retrying"), "{}", ThreadLog::text());
    assert!(!ThreadLog::text().contains("A city street"), "{}", ThreadLog::text());
}
