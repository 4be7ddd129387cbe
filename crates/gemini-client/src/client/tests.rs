//! Gemini as a translator, against a server that answers as the real one does.

use gemini_sandbox::{Fault, Ledger, Sandbox, Settings};
use secrecy::SecretString;

use super::*;

const KEY: &str = "gm-sandbox";

async fn sandbox() -> Sandbox {
    Sandbox::start(Settings::default()).await.expect("a port is free")
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

fn gemini(sandbox: &Sandbox) -> Gemini {
    Gemini::new(&settings(&sandbox.base_url(), KEY)).expect("a client")
}

/// Translations, and failures as sentences.
async fn translated(gemini: &Gemini, texts: &[&str]) -> Vec<Result<String, String>> {
    let results = gemini.translate(texts, &CancellationToken::new()).await;
    results.into_iter().map(|result| result.map_err(|failure| failure.to_string())).collect()
}

fn english(texts: &[&str]) -> Vec<Result<String, String>> {
    texts.iter().map(|text| Ok((*text).to_owned())).collect()
}

#[tokio::test]
async fn all_texts_are_translated_in_one_request_and_in_order() {
    let sandbox = sandbox().await;
    let texts = ["一座寧靜的山景", "一座宁静的山景", "a dog and 一隻狐狸 at dusk"];
    let found = translated(&gemini(&sandbox), &texts).await;
    let mountain = "A serene mountain landscape";
    assert_eq!(found, english(&[mountain, mountain, "a dog and A fox at dusk"]));
    assert_eq!(sandbox.ledger(), Ledger { requests: 1, texts: vec![texts.map(str::to_owned).to_vec()] });
}

#[tokio::test]
async fn fenced_json_is_read() {
    let sandbox = sandbox().await;
    sandbox.order(Fault::Fenced, 1);
    assert_eq!(translated(&gemini(&sandbox), &["一隻狐狸"]).await, english(&["A fox"]));
}

#[tokio::test]
async fn what_passes_is_asked_for_again() {
    let sandbox = sandbox().await;
    for status in [429, 500, 503] {
        sandbox.order(Fault::Status(status), 2);
        assert_eq!(translated(&gemini(&sandbox), &["一隻狐狸"]).await, english(&["A fox"]), "{status}");
    }
    assert_eq!(sandbox.ledger().requests, 9);
}

#[tokio::test]
async fn a_quota_that_stays_used_up_is_a_translator_that_cannot_be_reached() {
    let sandbox = sandbox().await;
    sandbox.order(Fault::Status(429), 100);
    let gemini = gemini(&sandbox);
    let found = gemini.translate(&["一隻狐狸", "熊"], &CancellationToken::new()).await;
    assert_eq!(found.len(), 2);
    for result in found {
        let failure = result.expect_err("no quota");
        assert!(failure.may_pass(), "{failure}");
        assert!(failure.to_string().contains("429 RESOURCE_EXHAUSTED"), "{failure}");
    }
    assert_eq!(sandbox.ledger().requests, 4, "as many retries as there are delays");
}

#[tokio::test]
async fn nobody_listening_is_a_translator_that_cannot_be_reached() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let gemini = Gemini::new(&settings(&format!("http://{closed}/"), KEY)).expect("a client");
    let failure = gemini.translate(&["一隻狐狸"], &CancellationToken::new()).await.remove(0).expect_err("nobody");
    assert!(failure.may_pass(), "{failure}");
}

#[tokio::test]
async fn a_text_that_is_blocked_spoils_only_itself() {
    for fault in ["blocked", "safety", "max-tokens", "short", "prose", "chinese", "html"] {
        let sandbox = sandbox().await;
        let bad = format!("熊 [gemini:{fault}]");
        let texts = ["一隻狐狸", "電影感", &bad, "一座寧靜的山景", "平靜的海灘"];
        let mut found = translated(&gemini(&sandbox), &texts).await;
        let spoilt = found.remove(2).expect_err("it is not translated");
        assert!(spoilt.starts_with("the translator gave no translation: "), "{fault}: {spoilt}");
        let others = ["A fox", "cinematic", "A serene mountain landscape", "A peaceful beach"];
        assert_eq!(found, english(&others), "{fault}");
        let mut sizes: Vec<_> = sandbox.ledger().texts.iter().map(Vec::len).collect();
        sizes.truncate(5);
        assert_eq!(sizes, [5, 2, 3, 1, 2], "{fault}: halves, until one text is alone");
    }
}

#[tokio::test]
async fn translations_in_another_order_are_not_taken_for_each_other() {
    let sandbox = sandbox().await;
    sandbox.order(Fault::Swapped, 1);
    assert_eq!(translated(&gemini(&sandbox), &["一隻狐狸", "電影感"]).await, english(&["A fox", "cinematic"]));
    assert_eq!(sandbox.ledger().requests, 3);
}

#[tokio::test]
async fn a_job_full_of_blocked_texts_does_not_ask_without_end() {
    let sandbox = sandbox().await;
    sandbox.order(Fault::Blocked, 10_000);
    let texts: Vec<String> = (0..200).map(|number| format!("熊 {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = translated(&gemini(&sandbox), &texts).await;
    assert!(found.iter().all(Result::is_err));
    assert_eq!(sandbox.ledger().requests, 64);
}

#[tokio::test]
async fn texts_that_nobody_refused_may_be_asked_for_in_the_next_try() {
    let sandbox = sandbox().await;
    // More blocked texts than can be told apart with 64 requests.
    let text = |number: usize| {
        if number.is_multiple_of(8) { format!("熊 {number} [gemini:blocked]") } else { format!("熊 {number}") }
    };
    let texts: Vec<String> = (0..200).map(text).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = gemini(&sandbox).translate(&texts, &CancellationToken::new()).await;
    for (text, result) in texts.iter().zip(found) {
        let stays = result.as_ref().is_err_and(|failure| !failure.may_pass());
        assert!(!stays || text.contains("blocked"), "{text}: {result:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_late_is_asked_for_in_halves() {
    for late in [Fault::Status(504), Fault::Slow] {
        let sandbox = sandbox().await;
        sandbox.order(late, 1);
        let settings = GeminiSettings { timeout: Duration::from_secs(1), ..settings(&sandbox.base_url(), KEY) };
        let gemini = Gemini::new(&settings).expect("a client");
        let texts = ["一隻狐狸", "電影感", "平靜的海灘"];
        assert_eq!(translated(&gemini, &texts).await, english(&["A fox", "cinematic", "A peaceful beach"]));
        let sizes: Vec<_> = sandbox.ledger().texts.iter().map(Vec::len).collect();
        assert_eq!(sizes, [3, 1, 2]);
    }
}

#[tokio::test]
async fn one_text_alone_is_asked_for_once_more_unless_it_is_blocked() {
    for (fault, requests) in [(Fault::Html, 2), (Fault::Prose, 2), (Fault::MaxTokens, 2)] {
        let sandbox = sandbox().await;
        sandbox.order(fault, 1);
        assert_eq!(translated(&gemini(&sandbox), &["一隻狐狸"]).await, english(&["A fox"]), "{fault:?}");
        assert_eq!(sandbox.ledger().requests, requests);
    }
    let sandbox = sandbox().await;
    sandbox.order(Fault::Blocked, 1);
    assert!(translated(&gemini(&sandbox), &["一隻狐狸"]).await[0].is_err());
    assert_eq!(sandbox.ledger().requests, 1);
}

#[tokio::test]
async fn a_key_that_the_api_repeats_is_not_repeated() {
    let sandbox = sandbox().await;
    sandbox.order(Fault::Suspended, 1);
    let failure = translated(&gemini(&sandbox), &["一隻狐狸"]).await.remove(0).expect_err("it is suspended");
    assert!(failure.contains("has been suspended") && !failure.contains(KEY), "{failure}");
}

#[tokio::test]
async fn a_key_or_a_model_that_is_refused_stays_refused_and_shows_nowhere() {
    let sandbox = sandbox().await;
    let base_url = sandbox.base_url();
    let key = Gemini::new(&settings(&base_url, "gm-hunter2")).expect("a client");
    let model = GeminiSettings { model: "gemini-9".to_owned(), ..settings(&base_url, KEY) };
    let model = Gemini::new(&model).expect("a client");
    for (gemini, said) in [(key, "400 INVALID_ARGUMENT: API key not valid"), (model, "404 NOT_FOUND")] {
        let failure = gemini.translate(&["一隻狐狸"], &CancellationToken::new()).await.remove(0).expect_err(said);
        assert!(!failure.may_pass(), "{failure}");
        assert!(failure.to_string().contains(said), "{failure}");
        assert!(!format!("{failure} {failure:?}").contains("hunter2"), "{failure}");
        let checked = gemini.check().await.expect_err(said);
        assert!(checked.to_string().contains(said), "{checked}");
    }
    gemini_is_well(&sandbox).await;
}

async fn gemini_is_well(sandbox: &Sandbox) {
    gemini(sandbox).check().await.expect("the key is good and the model is there");
}

#[tokio::test]
async fn a_stop_ends_the_wait_and_what_was_not_translated_may_be_later() {
    let sandbox = sandbox().await;
    sandbox.order(Fault::Slow, 1);
    let (gemini, stop) = (gemini(&sandbox), CancellationToken::new());
    let asked = async {
        while sandbox.ledger().texts.is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (found, ()) = tokio::join!(gemini.translate(&["一隻狐狸"], &stop), asked);
    assert!(found[0].as_ref().is_err_and(Untranslated::may_pass), "{found:?}");
}

#[test]
fn a_key_that_no_header_can_carry_is_refused_without_being_repeated() {
    let error = Gemini::new(&settings("http://127.0.0.1:1/", "gm-hunter2\n")).err().expect("a line break");
    assert_eq!(error.to_string(), "it holds characters that a header cannot carry");
}
