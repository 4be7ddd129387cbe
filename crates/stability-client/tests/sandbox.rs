//! The client over real HTTP, against the sandbox, which holds to the API's rules.

use std::time::Duration;

use stability_client::{Client, Engine, Error, RetryPolicy, TextToImage};
use stability_sandbox::faults::FaultOrder;
use stability_sandbox::{Sandbox, Settings};

const PROMPT: &str = "A serene mountain landscape at sunset, cinematic lighting, 4k quality";

async fn sandbox() -> Sandbox {
    Sandbox::start(Settings::default()).await.expect("a free port")
}

/// A client whose retries are real, but short.
fn client(sandbox: &Sandbox, key: &str) -> Client {
    let delays = vec![Duration::from_millis(10); 3];
    Client::builder(key)
        .base_url(sandbox.base_url().parse().expect("a URL"))
        .request_timeout(Duration::from_secs(30))
        .retries(RetryPolicy { delays, ..RetryPolicy::default() })
        .lockout(Duration::ZERO)
        .build()
        .expect("a good key")
}

fn request() -> TextToImage {
    let size = Engine::Sdxl10.size_for(1920, 1080);
    TextToImage::new(Engine::Sdxl10, size, PROMPT)
        .and_then(|request| request.negative_prompt("blurry, low quality, watermark"))
        .and_then(|request| request.cfg_scale(8.0))
        .and_then(|request| request.steps(40))
        .expect("a good request")
}

/// The task document's test 1. The sandbox refuses a wrong path, a missing key and a body without its fields, so that a picture says that
/// all of them were right; what stands in the body is tested beside the request.
#[tokio::test]
async fn test_1_one_picture_is_asked_for_and_can_be_decoded() {
    let sandbox = sandbox().await;
    let generated = client(&sandbox, "sk-sandbox").generate(&request()).await.expect("a picture");
    assert!(generated.image.len() > 1_000);
    assert_eq!((generated.spent.requests, generated.spent.maybe_charged), (1, 1));
    let picture = image::load_from_memory(&generated.image).expect("it decodes");
    assert_eq!((picture.width(), picture.height()), (1344, 768));
    let ledger = sandbox.ledger();
    assert_eq!(ledger.asked(PROMPT).requests, 1);
    assert_eq!((ledger.requests, ledger.charged), (1, 1));
}

#[tokio::test]
async fn every_fault_on_the_way_has_its_kind_and_its_number_of_requests() {
    let sandbox = sandbox().await;
    let client = client(&sandbox, "sk-sandbox");
    for (fault, kind, requests) in [
        ("status=500", "server", 4),
        ("status=503", "server", 4),
        ("status=429", "rate_limited", 4),
        ("status=400", "rejected", 1),
        ("status=401", "unauthorized", 1),
        ("status=402", "out_of_credit", 1),
        ("status=404", "unknown_engine", 1),
        ("filtered", "filtered", 1),
        ("error", "unfinished", 4),
        ("truncated", "undecodable", 4),
        ("html", "undecodable", 4),
        ("empty", "undecodable", 4),
        ("oversized", "undecodable", 4),
        ("drop", "interrupted", 4),
    ] {
        sandbox.clear_faults();
        let order = FaultOrder { fault: fault.to_owned(), times: None, prompt_contains: None };
        sandbox.order(order).expect("a known fault");
        let before = sandbox.ledger().requests;
        let failure = client.generate(&request()).await.expect_err(fault);
        assert_eq!((failure.error.kind(), failure.spent.requests), (kind, requests), "{fault}: {:?}", failure.error);
        assert_eq!(sandbox.ledger().requests - before, requests, "{fault}");
    }
    sandbox.clear_faults();
    client.generate(&request()).await.expect("the client is as good as new");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_a_time_out_and_a_server_that_is_not_there_a_failed_connection() {
    let sandbox = sandbox().await;
    sandbox.set_latency(Duration::from_mins(1));
    let impatient = Client::builder("sk-sandbox")
        .base_url(sandbox.base_url().parse().expect("a URL"))
        .request_timeout(Duration::from_millis(100))
        .retries(RetryPolicy { delays: vec![], ..RetryPolicy::default() })
        .build()
        .expect("a good key");
    let failure = impatient.generate(&request()).await.expect_err("it takes a minute");
    assert!(matches!(failure.error, Error::Timeout), "{:?}", failure.error);
    assert_eq!(failure.spent.maybe_charged, 1);
    let base_url = sandbox.base_url();
    drop(sandbox);
    let lost = Client::builder("sk-sandbox")
        .base_url(base_url.parse().expect("a URL"))
        .retries(RetryPolicy { delays: vec![], ..RetryPolicy::default() })
        .build()
        .expect("a good key");
    let failure = lost.generate(&request()).await.expect_err("nobody listens");
    assert!(matches!(failure.error, Error::Connect(_) | Error::Interrupted(_)), "{:?}", failure.error);
}

#[tokio::test]
async fn the_account_is_shown_to_whoever_has_the_key() {
    let sandbox = sandbox().await;
    sandbox.set_credits(41.5);
    let good = client(&sandbox, "sk-sandbox");
    assert!((good.balance().await.expect("credits").credits - 41.5).abs() < f64::EPSILON);
    let engines = good.engines().await.expect("engines");
    assert!(engines.iter().any(|engine| engine.id == Engine::Sdxl10.id()), "{engines:?}");
    let stranger = client(&sandbox, "sk-hunter2");
    let error = stranger.balance().await.expect_err("a wrong key");
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[tokio::test]
async fn never_more_requests_are_in_flight_than_the_bound() {
    let sandbox = sandbox().await;
    sandbox.set_latency(Duration::from_millis(50));
    let client = client(&sandbox, "sk-sandbox");
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        callers.spawn(async move { client.generate(&request()).await.map(drop) });
    }
    for result in callers.join_all().await {
        result.expect("a picture");
    }
    assert_eq!(sandbox.ledger().max_in_flight, 4);
}
