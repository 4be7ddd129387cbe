//! A TCP forwarder, so that a test can have its own broker come late and its own connections cut.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Forwards connections while it lives; dropping it cuts them all.
pub struct Proxy {
    _acceptor: JoinSet<()>,
}

impl Proxy {
    /// Listens on `address` and forwards to `upstream`.
    pub async fn start(address: SocketAddr, upstream: String) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let mut acceptor = JoinSet::new();
        acceptor.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let upstream = upstream.clone();
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(&upstream).await {
                        // Either side may hang up; both are told.
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Ok(Self { _acceptor: acceptor })
    }
}
