//! The API key appears in no error, no debug output and no log line.

use std::time::Duration;

use stability_client::{ApiKey, Client};
use stability_sandbox::faults::FaultSpec;

use super::{builder, logged, no_retries, request, sandbox};

const KEY: &str = "sk-hunter2";

#[tokio::test]
async fn errors_and_logs_never_contain_the_key() {
    let mut printed = format!("{:?}", ApiKey::from(KEY));

    // A key that the API rejects.
    let sandbox = sandbox().await;
    let stranger = builder(&sandbox, KEY).build().expect("a client");
    let failure = stranger.generate(&request()).await.expect_err("a wrong key");
    printed += &format!("{failure} {failure:?} {} ", failure.error);
    let error = stranger.check(stability_client::Engine::Core).await.expect_err("a wrong key");
    printed += &format!("{error} {error:?} ");

    // Every fault, with a key that the API accepts.
    let settings = stability_sandbox::Settings { keys: vec![KEY.to_owned()], ..stability_sandbox::Settings::default() };
    let friendly = stability_sandbox::Sandbox::start(settings).await.expect("a free port");
    let client = builder(&friendly, KEY).retry_policy(no_retries()).build().expect("a client");
    for fault in [
        "status=400",
        "status=402",
        "status=404",
        "status=429",
        "status=500",
        "filtered",
        "error",
        "corrupt",
        "truncated",
        "html",
        "empty",
        "drop",
    ] {
        friendly.clear_faults();
        let order = FaultSpec { fault: fault.to_owned(), times: None, prompt_contains: None };
        friendly.inject_fault(order).expect("a known fault");
        let failure = client.generate(&request()).await.expect_err(fault);
        printed += &format!("{failure} {failure:?} {} ", failure.error);
    }
    friendly.clear_faults();
    friendly.set_latency(Duration::from_mins(1));
    let impatient = builder(&friendly, KEY).request_timeout(Duration::from_millis(50)).retry_policy(no_retries());
    let failure = impatient.build().expect("a client").generate(&request()).await.expect_err("too slow");
    printed += &format!("{failure} {failure:?} {} ", failure.error);
    drop(friendly);
    let failure = client.generate(&request()).await.expect_err("no server is listening");
    printed += &format!("{failure} {failure:?} {} ", failure.error);

    // Keys that are not valid header values: the builder refuses them.
    for key in ["sk-hunter2\n", "sk-hunter2 \u{e9}\u{0}"] {
        if let Err(error) = Client::builder(key).build() {
            printed += &format!("{error} {error:?} ");
        }
    }
    let proxy = "http://user:hunter2@127.0.0.1:1";
    let proxied = builder(&sandbox, "sk-sandbox").proxy(proxy).retry_policy(no_retries()).build().expect("a client");
    let failure = proxied.generate(&request()).await.expect_err("no proxy is listening");
    printed += &format!("{failure} {failure:?} {} ", failure.error);

    let logged = logged();
    assert!(printed.len() > 2_000 && logged.contains("prompt refused by content policy"), "{printed}\n{logged}");
    for text in [printed, logged] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn invalid_header_values_and_certificates_are_refused() {
    let refused = |builder: stability_client::ClientBuilder| builder.build().expect_err("refused").to_string();
    assert_eq!(
        refused(Client::builder("sk-hunter2\n")),
        "cannot build the client: the API key contains characters that are not allowed in a header"
    );
    let error = refused(Client::builder("sk").client_id("tool\n", "1"));
    assert!(error.contains("stability-client-id: \"tool\\n\" contains characters"), "{error}");
    let error = refused(Client::builder("sk").root_certificates("not PEM"));
    assert_eq!(error, "cannot build the client: a root certificate is not PEM");
}
