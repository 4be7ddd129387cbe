//! Sandbox and client agree on every rule: each error and each finish reason goes through both, for both APIs and both forms of answers.

use std::time::Duration;

use stability_client::{AnswerForm, Engine, OutputFormat, RetryPolicy, Sampler, StylePreset, TextToImage};
use stability_sandbox::Sandbox;
use stability_sandbox::faults::FaultOrder;

use super::{builder, sandbox};

/// A fault of the sandbox, and what the client makes of it.
struct Row {
    fault: &'static str,
    kind: &'static str,
    /// Of two possible: there is one retry.
    requests: u32,
}

const fn row(fault: &'static str, kind: &'static str, requests: u32) -> Row {
    Row { fault, kind, requests }
}

const FAULTS: [Row; 22] = [
    row("status=400", "rejected", 1),
    row("status=401", "unauthorized", 1),
    row("status=402", "insufficient_credits", 1),
    row("status=403", "unauthorized", 1),
    row("status=404", "unknown_engine", 1),
    row("status=405", "rejected", 1),
    row("status=413", "rejected", 1),
    row("status=422", "rejected", 1),
    row("status=429", "rate_limited", 2),
    row("status=500", "server", 2),
    row("status=502", "server", 2),
    row("status=503", "server", 2),
    row("status=504", "server", 2),
    row("filtered", "filtered", 1),
    row("error", "unfinished", 2),
    row("corrupt", "damaged", 2),
    row("truncated", "damaged", 2),
    row("html", "undecodable", 2),
    row("empty", "undecodable", 2),
    row("oversized", "undecodable", 2),
    row("drop", "interrupted", 2),
    row("status=503:1", "server", 2),
];

fn request(engine: Engine, prompt: &str) -> TextToImage {
    TextToImage::new(engine, engine.frame_for(1, 1), prompt).expect("a good request")
}

async fn every_fault_has_its_kind_and_its_number_of_requests(engine: Engine, form: AnswerForm) {
    let sandbox = sandbox().await;
    let once = RetryPolicy { delays: vec![Duration::from_millis(1)], ..RetryPolicy::default() };
    let client = builder(&sandbox, "sk-sandbox").answers(form).retries(once).build().expect("a client");
    for Row { fault, kind, requests } in FAULTS {
        sandbox.clear_faults();
        // A fault of one time only: what comes after it succeeds.
        let times = fault.contains(':').then_some(1);
        let order = FaultOrder { fault: fault.to_owned(), times, prompt_contains: None };
        sandbox.order(order).expect("a known fault");
        let before = sandbox.ledger().requests;
        let answered = client.generate(&request(engine, "A fox")).await;
        let spent = match (answered, times) {
            (Ok(generated), Some(_)) => generated.usage,
            (Err(failure), None) => {
                // Half a body of JSON is no JSON.
                let kind = if fault == "truncated" && form == AnswerForm::Json { "undecodable" } else { kind };
                assert_eq!(failure.error.kind(), kind, "{engine} {form:?} {fault}: {:?}", failure.error);
                failure.usage
            }
            (answered, _) => panic!("{engine} {form:?} {fault}: {:?}", answered.map(|_| "a picture")),
        };
        assert_eq!(spent.requests, requests, "{engine} {form:?} {fault}");
        assert_eq!(sandbox.ledger().requests - before, requests, "{engine} {form:?} {fault}");
    }
    sandbox.clear_faults();
    client.generate(&request(engine, "A fox")).await.expect("the client is as good as new");
}

#[tokio::test]
async fn v1_as_images() {
    every_fault_has_its_kind_and_its_number_of_requests(Engine::Sdxl10, AnswerForm::Image).await;
}

#[tokio::test]
async fn v1_as_json() {
    every_fault_has_its_kind_and_its_number_of_requests(Engine::Sdxl10, AnswerForm::Json).await;
}

#[tokio::test]
async fn v2beta_as_images() {
    every_fault_has_its_kind_and_its_number_of_requests(Engine::Core, AnswerForm::Image).await;
}

#[tokio::test]
async fn v2beta_as_json() {
    every_fault_has_its_kind_and_its_number_of_requests(Engine::Sd35Flash, AnswerForm::Json).await;
}

#[tokio::test]
async fn every_engine_makes_pictures_in_either_form_and_the_same_ones() {
    let sandbox = sandbox().await;
    for engine in Engine::ALL {
        let mut pictures = Vec::new();
        for form in [AnswerForm::Image, AnswerForm::Json] {
            let client = builder(&sandbox, "sk-sandbox").answers(form).build().expect("a client");
            let request = request(*engine, "A fox").seed(7).expect("a seed");
            pictures.push(client.generate(&request).await.expect("a picture").into_first());
        }
        assert_eq!(pictures[0], pictures[1], "{engine}");
        assert_eq!(pictures[0].seed, 7, "{engine}");
        image::load_from_memory(&pictures[0].image).expect("it decodes");
    }
}

#[tokio::test]
async fn what_the_client_builds_the_sandbox_takes() {
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
        .expect("a good request");
    let generated = client.generate(&full).await.expect("three pictures");
    assert_eq!((generated.pictures.len(), generated.withheld), (3, 0));
    for format in OutputFormat::ALL {
        let request = request(Engine::Ultra, "A fox").output_format(*format).expect("a good request");
        let image = client.generate(&request).await.expect("a picture").into_first().image;
        let guessed = image::guess_format(&image).expect("a known format");
        let expected = image::ImageFormat::from_extension(format.as_str()).expect("a known format");
        assert_eq!(guessed, expected);
    }
}

#[tokio::test]
async fn moderation_refuses_a_prompt_of_either_api_and_charges_nothing() {
    let sandbox: Sandbox = sandbox().await;
    let client = builder(&sandbox, "sk-sandbox").build().expect("a client");
    for engine in [Engine::Sdxl10, Engine::Core, Engine::Ultra, Engine::Sd35Large] {
        let failure = client.generate(&request(engine, "A gory battle")).await.expect_err("refused");
        assert_eq!((failure.error.kind(), failure.usage.requests), ("content_policy", 1), "{engine}");
        assert_eq!(failure.usage.possibly_charged, 0, "{engine}");
    }
    assert_eq!(sandbox.ledger().charged, 0);
}
