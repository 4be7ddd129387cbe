//! An S3-compatible server of a test's own, which checks signatures and keeps its objects in a folder.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The one bucket there is.
pub const NAME: &str = "assets";
/// The one user there is.
pub const ACCESS_KEY: &str = "AKIASANDBOX";
/// Its password.
pub const SECRET_KEY: &str = "s3-hunter2";

/// A running server with one bucket; it stops when this is dropped.
pub struct Bucket {
    /// Where it answers.
    pub endpoint: String,
    folder: PathBuf,
    _server: JoinSet<()>,
}

impl Bucket {
    /// Starts a server that keeps its objects below this folder.
    pub async fn start(folder: &Path) -> Result<Self> {
        let folder = folder.join("s3");
        std::fs::create_dir_all(folder.join(NAME))?;
        let files = FileSystem::new(&folder).map_err(|error| anyhow!("{error:?}"))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                connections.spawn(async move {
                    let connection = Builder::new(TokioExecutor::new());
                    // What a client breaks off is its own business.
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { endpoint, folder: folder.join(NAME), _server: server })
    }

    /// Where an object lies.
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.join(key)
    }
}
