//! What the sandbox cannot see: headers, the proxy, TLS with a certificate of one's own, redirects, answers without end.

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

/// A good answer.
const CREDITS: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\nconnection: close\r\n\r\n{\"credits\": 4.5}";

async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a request"));
    }
    head
}

/// Answers one request, and gives back its head.
async fn answer_once(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let head = head_of(&mut stream).await;
    stream.write_all(answer.as_bytes()).await.expect("the client reads");
    stream.shutdown().await.expect("the client reads");
    String::from_utf8(head).expect("a head is text").to_lowercase()
}

fn builder(base_url: &str) -> ClientBuilder {
    Client::builder("sk-hunter2").base_url(base_url.parse().expect("a URL")).retries(no_retries())
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

#[tokio::test]
async fn the_caller_names_itself_and_the_key_stands_in_its_header_alone() {
    let (listener, port) = listener().await;
    let mut server = JoinSet::new();
    server.spawn(async move { answer_once(listener.accept().await.expect("a caller").0, CREDITS).await });
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
async fn a_proxy_gets_the_requests() {
    let (listener, port) = listener().await;
    let mut proxy = JoinSet::new();
    proxy.spawn(async move { answer_once(listener.accept().await.expect("a caller").0, CREDITS).await });
    let client = builder("http://api.example/").proxy(format!("http://127.0.0.1:{port}").parse().expect("a URL"));
    client.build().expect("a client").balance().await.expect("credits");
    let head = proxy.join_next().await.expect("a task").expect("a request");
    assert!(head.starts_with("get http://api.example/v1/user/balance http/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_the_key() {
    let ((listener, port), (elsewhere, other_port)) = (listener().await, listener().await);
    let mut server = JoinSet::new();
    let moved = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:{other_port}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    server.spawn(async move { answer_once(listener.accept().await.expect("a caller").0, &moved).await });
    let client = builder(&format!("http://127.0.0.1:{port}/")).build().expect("a client");
    let error = client.balance().await.expect_err("it is not followed");
    assert_eq!(error.kind(), "rejected");
    drop(client);
    // Nobody is waiting to be accepted there.
    let nobody =
        std::future::poll_fn(|context| std::task::Poll::Ready(elsewhere.poll_accept(context).is_pending())).await;
    assert!(nobody);
}

/// Answers one request with a body that never ends, in pieces of this size, as fast as they are read or this much slower.
async fn answer_for_ever(listener: TcpListener, piece: usize, pause: Duration) {
    let (mut stream, _) = listener.accept().await.expect("a caller");
    head_of(&mut stream).await;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
    let mut written = stream.write_all(head.as_bytes()).await;
    // Until the client hangs up.
    while written.is_ok() {
        tokio::time::sleep(pause).await;
        written = stream.write_all(&vec![b' '; piece]).await;
    }
}

#[tokio::test]
async fn an_answer_without_end_is_given_up_at_a_bound() {
    let (listener, port) = listener().await;
    let mut server = JoinSet::new();
    server.spawn(answer_for_ever(listener, 1 << 20, Duration::ZERO));
    let client = builder(&format!("http://127.0.0.1:{port}/")).build().expect("a client");
    let error = client.balance().await.expect_err("it has no end");
    assert_eq!(
        error.to_string(),
        format!("the API's answer cannot be decoded: the body is longer than {MAX_BODY_BYTES} bytes")
    );
    drop(client);
    server.join_next().await.expect("a task").expect("the connection is closed");
}

#[tokio::test]
async fn an_answer_that_dribbles_is_given_up_when_the_time_of_its_request_is_over() {
    let (listener, port) = listener().await;
    let mut server = JoinSet::new();
    server.spawn(answer_for_ever(listener, 1, Duration::from_millis(5)));
    let timeout = Duration::from_millis(200);
    let client = builder(&format!("http://127.0.0.1:{port}/")).request_timeout(timeout).build().expect("a client");
    let error = client.balance().await.expect_err("it comes too slowly");
    assert_eq!(error.kind(), "timeout");
    drop(client);
    server.join_next().await.expect("a task").expect("the connection is closed");
}

#[tokio::test]
async fn a_certificate_of_ones_own_is_trusted_where_it_is_given_and_nowhere_else() {
    // Fails only where a provider was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a good certificate")));
    let (listener, port) = listener().await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a caller");
            // Whoever does not trust the certificate hangs up here.
            if let Ok(stream) = acceptor.accept(stream).await {
                return answer_once(stream, CREDITS).await;
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
