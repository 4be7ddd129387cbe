//! HTTP/1.1 server that slow or numerous clients cannot block: connections, their heads and their writes are bounded.
//!
//! When all connections are taken, a new one replaces the oldest that is not serving a request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Maximum size of the request line and headers, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Delay after a failed `accept`, for example if no file descriptor is free.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Address of the client, or of the proxy before it; an extension of each request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddr(pub(crate) SocketAddr);

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpLimits {
    /// Maximum number of open connections.
    pub(crate) max_connections: usize,
    /// Time for the head of a request, and between two requests of a connection.
    pub(crate) head_timeout: Duration,
    /// A write that takes longer ends the connection.
    pub(crate) write_timeout: Duration,
    /// Maximum duration of a connection, if it is limited.
    pub(crate) lifetime: Option<Duration>,
    /// Whether a connection serves several requests.
    pub(crate) keep_alive: bool,
    /// Time for the requests in flight when the server is stopped.
    pub(crate) grace: Duration,
}

/// A connection in the order of acceptance.
struct OpenConnection {
    task: AbortHandle,
    /// Requests whose responses are not complete.
    in_flight: Arc<AtomicUsize>,
}

/// Serves requests until `stop` is cancelled.
pub(crate) async fn serve(listener: TcpListener, router: Router, limits: HttpLimits, stop: &CancellationToken) {
    let mut tasks = JoinSet::new();
    let mut open: VecDeque<OpenConnection> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            continue;
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= limits.max_connections {
            let is_idle = |connection: &OpenConnection| connection.in_flight.load(Ordering::Relaxed) == 0;
            let replaced = open.iter().position(is_idle).unwrap_or(0);
            open.remove(replaced).inspect(|connection| connection.task.abort());
        }
        let in_flight = Arc::<AtomicUsize>::default();
        let serving = serve_connection(stream, peer, router.clone(), limits, in_flight.clone(), stop.clone());
        open.push_back(OpenConnection { task: tasks.spawn(serving), in_flight });
    }
    // Connections end with their requests in flight; what is left after the grace period is dropped.
    let _ = timeout(limits.grace, async { while tasks.join_next().await.is_some() {} }).await;
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: HttpLimits,
    in_flight: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    // Otherwise a small piece of a body waits for the acknowledgement of the one before. An error means that the client
    // has gone.
    let _ = stream.set_nodelay(true);
    // A client that has vanished is noticed when it acknowledges nothing for this long; otherwise it takes a quarter of an
    // hour.
    let user_timeout = u32::try_from(limits.write_timeout.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_user_timeout(&stream, user_timeout);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.write_timeout));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let guard = InFlight::new(in_flight.clone());
        request.extensions_mut().insert(PeerAddr(peer));
        let mut router = router.clone();
        async move {
            let response = router.call(request.map(Body::new)).await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(GuardedBody { body, _guard: guard })))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(limits.keep_alive)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);
    let serving = async {
        // Errors and timeouts concern only the client, which has disconnected or is too slow.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    };
    match limits.lifetime {
        Some(lifetime) => drop(timeout(lifetime, serving).await),
        None => serving.await,
    }
}

/// Counts a request until it is dropped.
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of a response, whose request is in flight until the body is sent.
struct GuardedBody {
    body: Body,
    _guard: InFlight,
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
