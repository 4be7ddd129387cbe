//! HTTP behaviour that the sandbox does not check: headers, proxy, redirects, body limits and custom TLS certificates.

use std::sync::Arc;
use std::time::Duration;

use stability_client::{Client, ClientBuilder, MAX_BODY_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::{self, ServerConfig};

use super::no_retries;

/// A successful response of the balance endpoint.
const CREDITS_RESPONSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\nconnection: close\r\n\r\n{\"credits\": 4.5}";

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a request"));
    }
    head
}

/// Answers one request and returns its head in lower case.
async fn respond_once(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let head = read_head(&mut stream).await;
    stream.write_all(answer.as_bytes()).await.expect("the client reads");
    stream.shutdown().await.expect("the client reads");
    String::from_utf8(head).expect("a head is text").to_lowercase()
}

fn builder(base_url: &str) -> ClientBuilder {
    Client::builder("sk-hunter2").base_url(base_url).retry_policy(no_retries())
}

async fn bind_listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

#[tokio::test]
async fn configured_headers_are_sent_and_the_key_only_once() {
    let (listener, port) = bind_listener().await;
    let mut server = JoinSet::new();
    server.spawn(async move { respond_once(listener.accept().await.expect("a connection").0, CREDITS_RESPONSE).await });
    let client = builder(&format!("http://127.0.0.1:{port}/behind/a/gateway"))
        .user_agent("pipeline/7")
        .organization("org-1")
        .client_id("asset-worker", "1.2.3")
        .build()
        .expect("a client");
    assert!((client.balance().await.expect("credits").credits - 4.5).abs() < f64::EPSILON);
    let head = server.join_next().await.expect("a task").expect("a request");
    assert!(head.starts_with("get /behind/a/gateway/v1/user/balance http/1.1\r\n"), "{head}");
    for line in [
        "user-agent: pipeline/7",
        "organization: org-1",
        "stability-client-id: asset-worker",
        "stability-client-version: 1.2.3",
        "authorization: bearer sk-hunter2",
        "accept: application/json",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is missing in {head}");
    }
    assert_eq!(head.matches("hunter2").count(), 1, "{head}");
}

#[tokio::test]
async fn requests_go_through_the_proxy() {
    let (listener, port) = bind_listener().await;
    let mut proxy = JoinSet::new();
    proxy.spawn(async move { respond_once(listener.accept().await.expect("a connection").0, CREDITS_RESPONSE).await });
    let client = builder("http://api.example/").proxy(format!("http://127.0.0.1:{port}"));
    client.build().expect("a client").balance().await.expect("credits");
    let head = proxy.join_next().await.expect("a task").expect("a request");
    assert!(head.starts_with("get http://api.example/v1/user/balance http/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn requests_go_through_the_client_of_the_caller() {
    let (listener, port) = bind_listener().await;
    let mut server = JoinSet::new();
    server.spawn(async move { respond_once(listener.accept().await.expect("a connection").0, CREDITS_RESPONSE).await });
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("x-team", reqwest::header::HeaderValue::from_static("video"));
    let own = ClientBuilder::http_client_builder().expect("TLS is set up").default_headers(headers);
    let own = own.build().expect("an HTTP client");
    let client = builder(&format!("http://127.0.0.1:{port}")).http_client(own).user_agent("pipeline/7").build();
    client.expect("a client").balance().await.expect("credits");
    let head = server.join_next().await.expect("a task").expect("a request");
    for line in ["x-team: video", "user-agent: pipeline/7", "authorization: bearer sk-hunter2"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} is missing in {head}");
    }
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let ((listener, port), (elsewhere, other_port)) = (bind_listener().await, bind_listener().await);
    let mut server = JoinSet::new();
    let moved = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:{other_port}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    server.spawn(async move { respond_once(listener.accept().await.expect("a connection").0, &moved).await });
    let client = builder(&format!("http://127.0.0.1:{port}/")).build().expect("a client");
    let error = client.balance().await.expect_err("the redirect is not followed");
    assert_eq!(error.kind(), "rejected");
    drop(client);
    // The redirect's target has no connection to accept.
    let unreachable =
        std::future::poll_fn(|context| std::task::Poll::Ready(elsewhere.poll_accept(context).is_pending())).await;
    assert!(unreachable);
}

/// Answers one request with an endless body: pieces of `piece` bytes, with `pause` before each.
async fn respond_forever(listener: TcpListener, piece: usize, pause: Duration) {
    let (mut stream, _) = listener.accept().await.expect("a connection");
    read_head(&mut stream).await;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
    let mut written = stream.write_all(head.as_bytes()).await;
    // Until the client closes the connection.
    while written.is_ok() {
        tokio::time::sleep(pause).await;
        written = stream.write_all(&vec![b' '; piece]).await;
    }
}

#[tokio::test]
async fn endless_response_is_refused_at_the_size_limit() {
    let (listener, port) = bind_listener().await;
    let mut server = JoinSet::new();
    server.spawn(respond_forever(listener, 1 << 20, Duration::ZERO));
    let client = builder(&format!("http://127.0.0.1:{port}/")).build().expect("a client");
    let error = client.balance().await.expect_err("the body has no end");
    assert_eq!(error.to_string(), format!("the API's response is longer than {MAX_BODY_BYTES} bytes"));
    drop(client);
    server.join_next().await.expect("a task").expect("the connection is closed");
}

#[test]
fn base_url_that_is_not_http_is_refused() {
    for (url, shown) in [("ftp://127.0.0.1/", "ftp"), ("https//user:secret@host", "https//user"), ("", "")] {
        let error = builder(url).build().expect_err("the URL is refused").to_string();
        let expected =
            format!("cannot build the client: base URL: {shown:?} is not allowed; an http:// or https:// URL");
        assert_eq!(error, expected);
    }
    for url in ["https://user:hunter2@host/", "https://user@host/", "https://host/?key=hunter2", "https://host/#a"] {
        let error = builder(url).build().expect_err("the URL is refused").to_string();
        assert_eq!(error, "cannot build the client: base URL: a user, password, query or fragment is not allowed");
    }
}

#[tokio::test]
async fn slow_response_body_times_out() {
    let (listener, port) = bind_listener().await;
    let mut server = JoinSet::new();
    server.spawn(respond_forever(listener, 1, Duration::from_millis(5)));
    let timeout = Duration::from_millis(200);
    let client = builder(&format!("http://127.0.0.1:{port}/")).request_timeout(timeout).build().expect("a client");
    let error = client.balance().await.expect_err("the body is too slow");
    assert_eq!(error.kind(), "timeout");
    drop(client);
    server.join_next().await.expect("a task").expect("the connection is closed");
}

#[tokio::test]
async fn custom_root_certificate_is_trusted_only_if_configured() {
    // Fails only if a crypto provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a valid certificate")));
    let (listener, port) = bind_listener().await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            // The handshake fails for a client that does not trust the certificate.
            if let Ok(stream) = acceptor.accept(stream).await {
                return respond_once(stream, CREDITS_RESPONSE).await;
            }
        }
    });
    let base_url = format!("https://localhost:{port}/");
    let stranger = builder(&base_url).build().expect("a client");
    let error = stranger.balance().await.expect_err("the certificate is not trusted");
    assert_eq!(error.kind(), "connect", "{error}");
    let friend = builder(&base_url).root_certificates(made.cert.pem()).build().expect("a client");
    assert!((friend.balance().await.expect("credits").credits - 4.5).abs() < f64::EPSILON);
}
