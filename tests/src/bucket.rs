//! S3-compatible server for one test; it checks signatures and stores its objects in a folder.

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

/// Name of the only bucket.
pub const NAME: &str = "assets";
/// Access key id of the only user.
pub const ACCESS_KEY: &str = "AKIASANDBOX";
/// Secret access key of the only user.
pub const SECRET_KEY: &str = "s3-hunter2";

/// A running server with one bucket; dropping it stops the server.
pub struct Bucket {
    /// Base URL of the server.
    pub endpoint: String,
    folder: PathBuf,
    _server: JoinSet<()>,
}

impl Bucket {
    /// Starts a server that stores its objects below this folder.
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
                    // A connection that the client breaks off is not an error.
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { endpoint, folder: folder.join(NAME), _server: server })
    }

    /// Returns the path of the file that holds an object.
    pub fn object_path(&self, key: &str) -> PathBuf {
        self.folder.join(key)
    }
}
