//! A TCP forwarder, so that a test can have its own broker come late and its own connections cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use url::Url;

/// Forwards connections while it is open; while it is closed, whoever connects is cut off at once.
pub struct Proxy {
    address: SocketAddr,
    open: watch::Sender<bool>,
    _acceptor: JoinSet<()>,
}

impl Proxy {
    /// An open proxy before what this URL names, and the URL by way of it.
    pub async fn before(url: &str, usual_port: u16) -> Result<(Self, String)> {
        let mut url = Url::parse(url)?;
        let upstream = format!("{}:{}", url.host_str().context("a host")?, url.port().unwrap_or(usual_port));
        let proxy = Self::closed(upstream).await?;
        proxy.open();
        url.set_host(Some("127.0.0.1"))?;
        url.set_port(Some(proxy.address.port())).map_err(|()| anyhow::anyhow!("the URL takes no port"))?;
        Ok((proxy, url.into()))
    }

    async fn closed(upstream: String) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (open, _) = watch::channel(false);
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, Arc::new(upstream), open.subscribe()));
        Ok(Self { address, open, _acceptor: acceptor })
    }

    /// Lets connections through.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Cuts every connection, and lets none through.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Cuts every connection, and lets new ones through.
    pub fn cut(&self) {
        self.close();
        self.open();
    }
}

async fn accept(listener: TcpListener, upstream: Arc<String>, open: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let (upstream, mut open) = (upstream.clone(), open.clone());
        if !*open.borrow() {
            continue;
        }
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(upstream.as_str()).await {
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = open.wait_for(|open| !open) => {}
                }
            }
        });
    }
}
