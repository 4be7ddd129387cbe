//! The client over a scripted transport, in paused time.

mod options;
mod table;
mod unusable;

use std::collections::VecDeque;
use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::{Mutex, OnceLock};

use async_trait::async_trait;
use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::engine::Engine;
use crate::quota::GovernorQuota;

type Script = VecDeque<Result<HttpResponse, Error>>;

/// Answers with what the test wrote down; fails the test when that is used up, or left over.
#[derive(Default)]
struct Scripted {
    script: Mutex<Script>,
    sent: Mutex<Vec<(Duration, HttpRequest)>>,
    origin: OnceLock<Instant>,
}

#[async_trait]
impl Transport for Arc<Scripted> {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, Error> {
        let at = self.origin.get_or_init(Instant::now).elapsed();
        self.sent.lock().unwrap().push((at, request));
        self.script.lock().unwrap().pop_front().expect("a request that the test did not expect")
    }
}

impl Scripted {
    fn seconds(&self) -> Vec<f64> {
        assert!(self.script.lock().unwrap().is_empty(), "requests that the test expected were not sent");
        self.sent.lock().unwrap().iter().map(|(at, _)| at.as_secs_f64().round()).collect()
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a script holds answers and failures alike")]
fn good() -> Result<HttpResponse, Error> {
    let body = json!({"artifacts": [{"base64": "iVBORw0KGgoAAAAASUVORK5CYII=", "seed": 7, "finishReason": "SUCCESS"}]});
    Ok(HttpResponse { status: 200, body: body.to_string().into(), ..HttpResponse::default() })
}

#[expect(clippy::unnecessary_wraps, reason = "a script holds answers and failures alike")]
fn status(status: u16, body: &Value) -> Result<HttpResponse, Error> {
    Ok(HttpResponse { status, body: body.to_string().into(), ..HttpResponse::default() })
}

#[expect(clippy::unnecessary_wraps, reason = "a script holds answers and failures alike")]
fn too_many(retry_after: Option<u64>) -> Result<HttpResponse, Error> {
    let body = json!({"message": "Rate limit exceeded"}).to_string().into();
    Ok(HttpResponse { status: 429, retry_after: retry_after.map(Duration::from_secs), body, ..HttpResponse::default() })
}

fn client(script: impl Into<Script>, lockout_s: u64) -> (Client, Arc<Scripted>) {
    let transport = Arc::new(Scripted { script: Mutex::new(script.into()), ..Scripted::default() });
    let inner = Inner {
        transport: Box::new(transport.clone()),
        quota: Arc::new(GovernorQuota::default()),
        turns: Turns::new(NonZeroUsize::new(4).expect("not 0")),
        retries: RetryPolicy::default(),
        lockout: Duration::from_secs(lockout_s),
        answers: AnswerForm::Json,
        observers: Vec::new(),
    };
    (Client { inner: Arc::new(inner) }, transport)
}

/// Requests, and those of them that may have been charged.
fn charged(usage: &Usage) -> (u32, u32) {
    (usage.requests, usage.possibly_charged)
}

fn request() -> TextToImage {
    let frame = Engine::Sdxl10.frame_for(1920, 1080);
    TextToImage::new(Engine::Sdxl10, frame, "A city street").expect("a good request")
}

/// Collects what is logged while it lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt().with_writer(self.clone()).with_ansi(false).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).expect("logs are text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Test 2, with the lock-out set to zero.
#[tokio::test(start_paused = true)]
async fn test_2_two_429s_are_retried_after_2_and_5_seconds() {
    let (client, transport) = client([too_many(None), too_many(None), good()], 0);
    let log = Log::default();
    let generated = {
        let _guard = log.start();
        client.generate(&request()).await.expect("the third request succeeds")
    };
    assert_eq!(charged(&generated.usage), (3, 1));
    assert_eq!(generated.into_first().image.len(), 20);
    assert_eq!(transport.seconds(), [0.0, 2.0, 7.0]);
    assert_eq!(log.text().matches("rate limit exceeded, retrying").count(), 2, "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn a_lockout_is_waited_out_and_uses_up_no_retry() {
    let server = || status(500, &json!({}));
    let script = [too_many(None), server(), server(), too_many(Some(30)), server(), good()];
    let (client, transport) = client(script, 60);
    client.generate(&request()).await.expect("three retries are enough");
    assert_eq!(transport.seconds(), [0.0, 60.0, 62.0, 67.0, 97.0, 107.0]);
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_retried_three_times_and_then_given_up() {
    let failures = || {
        vec![
            Err(Error::Connect("refused".into())),
            Err(Error::Timeout),
            Err(Error::Interrupted("reset".into())),
            status(503, &json!({})),
        ]
    };
    let (client, transport) = client(failures(), 60);
    let error = client.generate(&request()).await.expect_err("nothing works");
    assert_eq!(error.error.kind(), "server");
    assert_eq!(charged(&error.usage), (4, 2));
    assert_eq!(transport.seconds(), [0.0, 2.0, 7.0, 17.0]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_that_is_longer_than_the_delay_wins_and_a_shorter_one_does_not() {
    let busy = |seconds| {
        let retry_after = Some(Duration::from_secs(seconds));
        Ok(HttpResponse { status: 503, retry_after, ..HttpResponse::default() })
    };
    let (client, transport) = client([busy(20), busy(1), busy(0), good()], 60);
    client.generate(&request()).await.expect("the fourth request succeeds");
    assert_eq!(transport.seconds(), [0.0, 20.0, 25.0, 35.0]);
}

#[tokio::test(start_paused = true)]
async fn no_wait_is_begun_that_would_end_after_the_total_limit() {
    let (client, transport) = client([too_many(Some(200)), too_many(Some(200))], 60);
    let error = client.generate(&request()).await.expect_err("400 s are more than 5 minutes");
    assert_eq!(error.error.kind(), "rate_limited");
    assert_eq!(transport.seconds(), [0.0, 200.0]);
}

#[tokio::test(start_paused = true)]
async fn retry_that_would_end_after_the_total_limit_is_not_begun() {
    let busy = HttpResponse { status: 503, retry_after: Some(Duration::from_secs(301)), ..HttpResponse::default() };
    let (client, transport) = client([Ok(busy)], 60);
    let error = client.generate(&request()).await.expect_err("301 s are more than 5 minutes");
    assert_eq!(error.usage, Usage { requests: 1, possibly_charged: 0, retries: 0 });
    assert_eq!(transport.seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_account_is_not_waited_out_beyond_the_total_limit() {
    let (client, transport) = client([], 60);
    let start = Instant::now();
    client.inner.quota.pause(start + Duration::from_hours(1)).await;
    let error = client.generate(&request()).await.expect_err("an hour is more than 5 minutes");
    assert_eq!((error.error.kind(), error.usage), ("quota", Usage::default()));
    assert_eq!(start.elapsed(), Duration::from_mins(5));
    assert!(transport.seconds().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_or_undecodable_answer_is_retried_and_counted_as_charged() {
    let unfinished = json!({"artifacts": [{"base64": "", "finishReason": "ERROR"}]});
    let script = [status(200, &unfinished), status(200, &json!("<html>")), good()];
    let (client, transport) = client(script, 60);
    let generated = client.generate(&request()).await.expect("the third request succeeds");
    assert_eq!(charged(&generated.usage), (3, 3));
    assert_eq!(transport.seconds(), [0.0, 2.0, 7.0]);
}

/// Test 3.
#[tokio::test(start_paused = true)]
async fn test_3_a_content_policy_refusal_is_not_retried_and_its_prompt_is_logged_once() {
    let (client, transport) = client([status(400, &json!({"message": "Content policy violation"}))], 60);
    let log = Log::default();
    let error = {
        let _guard = log.start();
        client.generate(&request()).await.expect_err("it is refused")
    };
    assert!(matches!(error.error, Error::ContentPolicy(_)), "{error:?}");
    assert!(error.error.to_string().contains("Content policy violation"), "{}", error.error);
    assert_eq!(transport.seconds(), [0.0]);
    assert_eq!(log.text().matches("A city street").count(), 1, "{}", log.text());
}

#[tokio::test(start_paused = true)]
async fn a_filtered_picture_is_never_an_image() {
    let body = json!({"artifacts": [{"base64": "iVBORw0KGgoAAAAASUVORK5CYII=", "seed": 7, "finishReason": "CONTENT_FILTERED"}]});
    let (client, transport) = client([status(200, &body)], 60);
    let log = Log::default();
    let error = {
        let _guard = log.start();
        client.generate(&request()).await.expect_err("it is filtered")
    };
    assert_eq!(log.text().matches("A city street").count(), 1, "{}", log.text());
    assert!(matches!(error.error, Error::Filtered), "{error:?}");
    assert_eq!(charged(&error.usage), (1, 1));
    assert_eq!(transport.seconds(), [0.0]);
}

#[tokio::test(start_paused = true)]
async fn a_prompt_is_not_logged_unless_it_is_refused() {
    let (client, _) = client([status(500, &json!({})), good()], 60);
    let log = Log::default();
    {
        let _guard = log.start();
        client.generate(&request()).await.expect("the second request succeeds");
    }
    assert!(log.text().contains("request failed, retrying"), "{}", log.text());
    assert!(!log.text().contains("A city street"), "{}", log.text());
}
