//! TCP proxy with which a test makes a service unreachable, or cuts or stalls connections to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// TCP proxy that forwards connections while it is open.
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    _acceptor: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Bytes are forwarded.
    Open,
    /// Connections stay open, but no bytes are forwarded.
    Stalled,
    /// Connections are closed, and new ones are closed at once.
    Closed,
}

impl Proxy {
    /// Starts an open proxy in front of the host of this URL; returns it with the URL that leads through it.
    pub async fn in_front_of(url: &str, default_port: u16) -> Result<(Self, String)> {
        let mut url = Url::parse(url)?;
        let upstream =
            format!("{}:{}", url.host_str().context("the URL has no host")?, url.port().unwrap_or(default_port));
        let proxy = Self::start(upstream).await?;
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(proxy.address.port())).map_err(|()| anyhow::anyhow!("the URL cannot have a port"))?;
        Ok((proxy, url.into()))
    }

    async fn start(upstream: String) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (state, _) = watch::channel(State::Open);
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, Arc::new(upstream), state.subscribe()));
        Ok(Self { address, state, _acceptor: acceptor })
    }

    /// Forwards bytes and lets new connections through.
    pub fn open(&self) {
        self.state.send_replace(State::Open);
    }

    /// Keeps all connections, but forwards nothing until the proxy is opened again.
    pub fn stall(&self) {
        self.state.send_replace(State::Stalled);
    }

    /// Closes all connections, and new ones at once.
    pub fn close(&self) {
        self.state.send_replace(State::Closed);
    }

    /// Closes all connections, but lets new ones through.
    pub fn drop_connections(&self) {
        self.close();
        self.open();
    }
}

async fn accept(listener: TcpListener, upstream: Arc<String>, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (upstream, mut state) = (upstream.clone(), state.clone());
        if *state.borrow() == State::Closed {
            continue;
        }
        connections.spawn(async move {
            if let Ok(upstream_stream) = TcpStream::connect(upstream.as_str()).await {
                let ((near_read, near_write), (far_read, far_write)) =
                    (client.into_split(), upstream_stream.into_split());
                tokio::select! {
                    _ = forward(near_read, far_write, state.clone()) => {}
                    _ = forward(far_read, near_write, state.clone()) => {}
                    _ = state.wait_for(|state| *state == State::Closed) => {}
                }
            }
        });
    }
}

/// Copies bytes in one direction while the proxy is open; ends at the end of the input or with an error.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        state.wait_for(|state| *state == State::Open).await?;
        to.write_all(&buffer[..length]).await?;
    }
}
