//! Tests of the client against the Gemini sandbox.

use gemini_sandbox::{Fault, Ledger, Sandbox, Settings};
use secrecy::SecretString;

use super::*;

const KEY: &str = "gm-sandbox";

async fn start_sandbox() -> Sandbox {
    Sandbox::start(Settings::default()).await.expect("a free port")
}

fn settings(base_url: &str, key: &str) -> GeminiSettings {
    GeminiSettings {
        api_key: SecretString::from(key),
        base_url: Url::parse(base_url).expect("a URL"),
        model: "gemini-flash-latest".to_owned(),
        timeout: Duration::from_secs(10),
        retry_delays: [1, 2, 3].map(Duration::from_millis).to_vec(),
        user_agent: "test".to_owned(),
        is_english: str::is_ascii,
    }
}

fn client(sandbox: &Sandbox) -> Gemini {
    Gemini::new(&settings(&sandbox.base_url(), KEY)).expect("a client")
}

/// Translates texts, with errors as strings.
async fn translate(gemini: &Gemini, texts: &[&str]) -> Vec<Result<String, String>> {
    let results = gemini.translate(texts, &CancellationToken::new()).await;
    results.into_iter().map(|result| result.map_err(|failure| failure.to_string())).collect()
}

fn ok_results(texts: &[&str]) -> Vec<Result<String, String>> {
    texts.iter().map(|text| Ok((*text).to_owned())).collect()
}

#[tokio::test]
async fn all_texts_are_translated_in_one_request_and_in_order() {
    let sandbox = start_sandbox().await;
    let texts = ["一座寧靜的山景", "一座宁静的山景", "a dog and 一隻狐狸 at dusk"];
    let found = translate(&client(&sandbox), &texts).await;
    let mountain = "A serene mountain landscape";
    assert_eq!(found, ok_results(&[mountain, mountain, "a dog and A fox at dusk"]));
    assert_eq!(sandbox.ledger(), Ledger { requests: 1, texts: vec![texts.map(str::to_owned).to_vec()] });
}

#[tokio::test]
async fn fenced_json_is_parsed() {
    let sandbox = start_sandbox().await;
    sandbox.inject_fault(Fault::Fenced, 1);
    assert_eq!(translate(&client(&sandbox), &["一隻狐狸"]).await, ok_results(&["A fox"]));
}

#[tokio::test]
async fn temporary_errors_are_retried() {
    let sandbox = start_sandbox().await;
    for status in [429, 500, 503] {
        sandbox.inject_fault(Fault::Status(status), 2);
        assert_eq!(translate(&client(&sandbox), &["一隻狐狸"]).await, ok_results(&["A fox"]), "{status}");
    }
    assert_eq!(sandbox.ledger().requests, 9);
}

#[tokio::test]
async fn exhausted_quota_is_reported_as_unreachable() {
    let sandbox = start_sandbox().await;
    sandbox.inject_fault(Fault::Status(429), 100);
    let gemini = client(&sandbox);
    let found = gemini.translate(&["一隻狐狸", "熊"], &CancellationToken::new()).await;
    assert_eq!(found.len(), 2);
    for result in found {
        let failure = result.expect_err("no quota");
        assert!(failure.is_retryable(), "{failure}");
        assert!(failure.to_string().contains("429 RESOURCE_EXHAUSTED"), "{failure}");
    }
    assert_eq!(sandbox.ledger().requests, 4, "one request, and one retry for each delay");
}

#[tokio::test]
async fn refused_connection_is_reported_as_unreachable() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let gemini = Gemini::new(&settings(&format!("http://{closed}/"), KEY)).expect("a client");
    let failure = gemini.translate(&["一隻狐狸"], &CancellationToken::new()).await.remove(0).expect_err("no server");
    assert!(failure.is_retryable(), "{failure}");
}

#[tokio::test]
async fn one_untranslatable_text_does_not_affect_the_others() {
    for fault in ["blocked", "safety", "max-tokens", "short", "prose", "chinese", "html"] {
        let sandbox = start_sandbox().await;
        let bad = format!("熊 [gemini:{fault}]");
        let texts = ["一隻狐狸", "電影感", &bad, "一座寧靜的山景", "平靜的海灘"];
        let mut found = translate(&client(&sandbox), &texts).await;
        let error = found.remove(2).expect_err("the text is not translated");
        assert!(error.starts_with("text not translated: "), "{fault}: {error}");
        let others = ["A fox", "cinematic", "A serene mountain landscape", "A peaceful beach"];
        assert_eq!(found, ok_results(&others), "{fault}");
        let mut sizes: Vec<_> = sandbox.ledger().texts.iter().map(Vec::len).collect();
        sizes.truncate(5);
        assert_eq!(sizes, [5, 2, 3, 1, 2], "{fault}: split in halves down to the single text");
    }
}

#[tokio::test]
async fn reordered_translations_are_rejected_and_requested_again() {
    let sandbox = start_sandbox().await;
    sandbox.inject_fault(Fault::Swapped, 1);
    assert_eq!(translate(&client(&sandbox), &["一隻狐狸", "電影感"]).await, ok_results(&["A fox", "cinematic"]));
    assert_eq!(sandbox.ledger().requests, 3);
}

#[tokio::test]
async fn number_of_requests_per_call_is_limited() {
    let sandbox = start_sandbox().await;
    sandbox.inject_fault(Fault::Blocked, 10_000);
    let texts: Vec<String> = (0..200).map(|number| format!("熊 {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = translate(&client(&sandbox), &texts).await;
    assert!(found.iter().all(Result::is_err));
    assert_eq!(sandbox.ledger().requests, 64);
}

#[tokio::test]
async fn texts_beyond_the_request_limit_stay_retryable() {
    let sandbox = start_sandbox().await;
    // More blocked texts than 64 requests can isolate.
    let text = |number: usize| {
        if number.is_multiple_of(8) { format!("熊 {number} [gemini:blocked]") } else { format!("熊 {number}") }
    };
    let texts: Vec<String> = (0..200).map(text).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = client(&sandbox).translate(&texts, &CancellationToken::new()).await;
    for (text, result) in texts.iter().zip(found) {
        let is_final = result.as_ref().is_err_and(|failure| !failure.is_retryable());
        assert!(!is_final || text.contains("blocked"), "{text}: {result:?}");
    }
}

#[tokio::test]
async fn timed_out_request_is_split_in_halves() {
    for late in [Fault::Status(504), Fault::Slow] {
        let sandbox = start_sandbox().await;
        sandbox.inject_fault(late, 1);
        let settings = GeminiSettings { timeout: Duration::from_secs(1), ..settings(&sandbox.base_url(), KEY) };
        let gemini = Gemini::new(&settings).expect("a client");
        let texts = ["一隻狐狸", "電影感", "平靜的海灘"];
        assert_eq!(translate(&gemini, &texts).await, ok_results(&["A fox", "cinematic", "A peaceful beach"]));
        let sizes: Vec<_> = sandbox.ledger().texts.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 2]);
    }
}

#[tokio::test]
async fn single_text_is_retried_once_unless_blocked() {
    for (fault, requests) in [(Fault::Html, 2), (Fault::Prose, 2), (Fault::MaxTokens, 2)] {
        let sandbox = start_sandbox().await;
        sandbox.inject_fault(fault, 1);
        assert_eq!(translate(&client(&sandbox), &["一隻狐狸"]).await, ok_results(&["A fox"]), "{fault:?}");
        assert_eq!(sandbox.ledger().requests, requests);
    }
    let sandbox = start_sandbox().await;
    sandbox.inject_fault(Fault::Blocked, 1);
    assert!(translate(&client(&sandbox), &["一隻狐狸"]).await[0].is_err());
    assert_eq!(sandbox.ledger().requests, 1);
}

#[tokio::test]
async fn api_key_in_an_error_response_is_redacted() {
    let sandbox = start_sandbox().await;
    sandbox.inject_fault(Fault::Suspended, 1);
    let failure = translate(&client(&sandbox), &["一隻狐狸"]).await.remove(0).expect_err("the key is suspended");
    assert!(failure.contains("has been suspended") && !failure.contains(KEY), "{failure}");
}

#[tokio::test]
async fn rejected_key_or_model_is_final_and_key_stays_secret() {
    let sandbox = start_sandbox().await;
    let base_url = sandbox.base_url();
    let key = Gemini::new(&settings(&base_url, "gm-hunter2")).expect("a client");
    let model = GeminiSettings { model: "gemini-9".to_owned(), ..settings(&base_url, KEY) };
    let model = Gemini::new(&model).expect("a client");
    for (gemini, message) in [(key, "400 INVALID_ARGUMENT: API key not valid"), (model, "404 NOT_FOUND")] {
        let failure = gemini.translate(&["一隻狐狸"], &CancellationToken::new()).await.remove(0).expect_err(message);
        assert!(!failure.is_retryable(), "{failure}");
        assert!(failure.to_string().contains(message), "{failure}");
        assert!(!format!("{failure} {failure:?}").contains("hunter2"), "{failure}");
        let checked = gemini.check().await.expect_err(message);
        assert!(checked.to_string().contains(message), "{checked}");
    }
    gemini_is_well(&sandbox).await;
}

async fn gemini_is_well(sandbox: &Sandbox) {
    client(sandbox).check().await.expect("key and model are accepted");
}

#[tokio::test]
async fn cancellation_ends_the_wait_and_texts_stay_retryable() {
    let sandbox = start_sandbox().await;
    sandbox.inject_fault(Fault::Slow, 1);
    let (gemini, stop) = (client(&sandbox), CancellationToken::new());
    let cancel_when_requested = async {
        while sandbox.ledger().texts.is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (found, ()) = tokio::join!(gemini.translate(&["一隻狐狸"], &stop), cancel_when_requested);
    assert!(found[0].as_ref().is_err_and(TranslationError::is_retryable), "{found:?}");
}

#[test]
fn key_invalid_as_header_is_rejected_without_being_shown() {
    let error = Gemini::new(&settings("http://127.0.0.1:1/", "gm-hunter2\n")).err().expect("a line break");
    assert_eq!(error.to_string(), "contains characters that are not allowed in a header");
}
