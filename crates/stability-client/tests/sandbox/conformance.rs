//! Conformance of client and sandbox: every fault and finish reason, for both API versions and both response formats.

use std::time::Duration;

use stability_client::{Engine, OutputFormat, ResponseFormat, RetryPolicy, Sampler, StylePreset, TextToImage};
use stability_sandbox::Sandbox;
use stability_sandbox::faults::FaultSpec;

use super::{builder, sandbox};

/// A fault injected into the sandbox, and the error that the client must report.
struct FaultCase {
    fault: &'static str,
    error_kind: &'static str,
    /// Requests sent: 1 without, 2 with the one retry that the policy allows.
    requests: u32,
}

const fn case(fault: &'static str, kind: &'static str, requests: u32) -> FaultCase {
    FaultCase { fault, error_kind: kind, requests }
}

const FAULTS: [FaultCase; 22] = [
    case("status=400", "rejected", 1),
    case("status=401", "unauthorized", 1),
    case("status=402", "insufficient_credits", 1),
    case("status=403", "unauthorized", 1),
    case("status=404", "unknown_engine", 1),
    case("status=405", "rejected", 1),
    case("status=413", "rejected", 1),
    case("status=422", "rejected", 1),
    case("status=429", "rate_limited", 2),
    case("status=500", "server", 2),
    case("status=502", "server", 2),
    case("status=503", "server", 2),
    case("status=504", "server", 2),
    case("filtered", "filtered", 1),
    case("error", "unfinished", 2),
    case("corrupt", "damaged", 2),
    case("truncated", "damaged", 2),
    case("html", "undecodable", 2),
    case("empty", "undecodable", 2),
    case("oversized", "too_long", 1),
    case("drop", "interrupted", 2),
    case("status=503:1", "server", 2),
];

fn request(engine: Engine, prompt: &str) -> TextToImage {
    TextToImage::new(engine, engine.dimensions_for(1, 1), prompt).expect("a valid request")
}

async fn check_every_fault(engine: Engine, form: ResponseFormat) {
    let sandbox = sandbox().await;
    let one_retry = RetryPolicy::default().delays([Duration::from_millis(1)]);
    let client =
        builder(&sandbox, "sk-sandbox").response_format(form).retry_policy(one_retry).build().expect("a client");
    for FaultCase { fault, error_kind: kind, requests } in FAULTS {
        sandbox.clear_faults();
        // A fault with a count is injected only that often: the retry succeeds.
        let times = fault.contains(':').then_some(1);
        let order = FaultSpec { fault: fault.to_owned(), times, prompt_contains: None };
        sandbox.inject_fault(order).expect("a known fault");
        let before = sandbox.ledger().requests;
        let result = client.generate(&request(engine, "A fox")).await;
        let usage = match (result, times) {
            (Ok(generated), Some(_)) => generated.usage,
            (Err(failure), None) => {
                // A truncated JSON body cannot be parsed: the error is "undecodable" instead of "damaged".
                let kind = if fault == "truncated" && form == ResponseFormat::Json { "undecodable" } else { kind };
                assert_eq!(failure.error.kind(), kind, "{engine} {form:?} {fault}: {:?}", failure.error);
                failure.usage
            }
            (result, _) => panic!("{engine} {form:?} {fault}: {:?}", result.map(|_| "an image")),
        };
        assert_eq!(usage.requests, requests, "{engine} {form:?} {fault}");
        assert_eq!(sandbox.ledger().requests - before, requests, "{engine} {form:?} {fault}");
    }
    sandbox.clear_faults();
    client.generate(&request(engine, "A fox")).await.expect("generation succeeds without faults");
}

#[tokio::test]
async fn v1_faults_have_the_expected_errors_with_binary_responses() {
    check_every_fault(Engine::Sdxl10, ResponseFormat::Image).await;
}

#[tokio::test]
async fn v1_faults_have_the_expected_errors_with_json_responses() {
    check_every_fault(Engine::Sdxl10, ResponseFormat::Json).await;
}

#[tokio::test]
async fn v2beta_faults_have_the_expected_errors_with_binary_responses() {
    check_every_fault(Engine::Core, ResponseFormat::Image).await;
}

#[tokio::test]
async fn v2beta_faults_have_the_expected_errors_with_json_responses() {
    check_every_fault(Engine::Sd35Flash, ResponseFormat::Json).await;
}

#[tokio::test]
async fn both_response_formats_return_the_same_image() {
    let sandbox = sandbox().await;
    for engine in Engine::ALL {
        let mut pictures = Vec::new();
        for form in [ResponseFormat::Image, ResponseFormat::Json] {
            let client = builder(&sandbox, "sk-sandbox").response_format(form).build().expect("a client");
            let request = request(*engine, "A fox").seed(7).expect("a seed");
            pictures.push(client.generate(&request).await.expect("an image").into_first());
        }
        assert_eq!(pictures[0], pictures[1], "{engine}");
        assert_eq!(pictures[0].seed, 7, "{engine}");
        image::load_from_memory(&pictures[0].bytes).expect("a decodable image");
    }
}

#[tokio::test]
async fn sandbox_accepts_every_option_of_the_client() {
    let sandbox = sandbox().await;
    let client = builder(&sandbox, "sk-sandbox").build().expect("a client");
    let full = request(Engine::Sdxl10, "A fox")
        .weighted_prompt("snow", 0.5)
        .and_then(|request| request.negative_prompt("blurry"))
        .and_then(|request| request.cfg_scale(35.0))
        .and_then(|request| request.steps(50))
        .and_then(|request| request.samples(3))
        .and_then(|request| request.seed(u32::MAX))
        .and_then(|request| request.sampler(Sampler::KDpmpp2M))
        .and_then(|request| request.style_preset(StylePreset::PixelArt))
        .expect("a valid request");
    let generated = client.generate(&full).await.expect("three images");
    assert_eq!((generated.images.len(), generated.withheld), (3, 0));
    for format in OutputFormat::ALL {
        let request = request(Engine::Ultra, "A fox").output_format(*format).expect("a valid request");
        let image = client.generate(&request).await.expect("an image").into_first().bytes;
        let guessed = image::guess_format(&image).expect("a known format");
        let expected = image::ImageFormat::from_extension(format.as_str()).expect("a known format");
        assert_eq!(guessed, expected);
    }
}

#[tokio::test]
async fn prompt_refused_by_moderation_is_not_charged() {
    let sandbox: Sandbox = sandbox().await;
    let client = builder(&sandbox, "sk-sandbox").build().expect("a client");
    for engine in [Engine::Sdxl10, Engine::Core, Engine::Ultra, Engine::Sd35Large] {
        let failure = client.generate(&request(engine, "A gory battle")).await.expect_err("rejected by moderation");
        assert_eq!((failure.error.kind(), failure.usage.requests), ("content_policy", 1), "{engine}");
        assert_eq!(failure.usage.possibly_charged, 0, "{engine}");
    }
    assert_eq!(sandbox.ledger().charged, 0);
}
