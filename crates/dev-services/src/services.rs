//! RabbitMQ and PostgreSQL, from wherever they can be had.
//!
//! In this order: URLs given in the environment; a Docker engine that can give the image; installed binaries, started as private
//! processes on loopback with ports and folders of their own; on Debian and Ubuntu as root, installed first. A broker or
//! database that runs already is never touched unless its URL is given.

mod docker;
mod install;
mod postgres;
mod prometheus;
mod rabbitmq;
mod vhost;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;
use tokio::sync::Mutex;

pub use prometheus::programs as prometheus_programs;
pub use vhost::Vhost;

use crate::{print_status, programs, variable};

/// Where tests find RabbitMQ.
pub const AMQP_URL: &str = "TEST_AMQP_URL";
/// Where they find its management API, with user and password.
pub const RABBITMQ_API_URL_VAR: &str = "TEST_RABBITMQ_API_URL";
/// Where they find PostgreSQL, as a user who may create databases.
pub const DATABASE_URL: &str = "TEST_DATABASE_URL";

/// Where they find the programs of Prometheus: a folder.
pub const PROMETHEUS_VAR: &str = "TEST_PROMETHEUS";

/// A running RabbitMQ.
pub struct RabbitMq {
    /// `amqp://user:password@host:port/%2f`
    pub amqp_url: String,
    /// `http://user:password@host:port`
    pub api_url: String,
    /// For people: where it came from.
    pub origin: String,
    kept: Kept,
}

/// A running PostgreSQL.
pub struct Postgres {
    /// `postgres://user:password@host:port/postgres`
    pub url: String,
    /// For people: where it came from.
    pub origin: String,
    kept: Kept,
}

/// What runs for us, and must be stopped in the end.
enum Kept {
    Nothing,
    Container(Box<docker::Container>),
    RabbitMq(Box<rabbitmq::PrivateServer>),
    Postgres(Box<postgres::PrivateServer>),
}

impl Kept {
    /// Stops it for good.
    async fn stop(self) {
        match self {
            Self::Nothing => {}
            Self::Container(container) => container.remove().await,
            Self::RabbitMq(mut server) => server.stop().await,
            Self::Postgres(mut server) => server.stop().await,
        }
    }

    /// Stops it for this long, and starts it again where it was, with its data.
    async fn restart_after(&mut self, away: Duration) -> Result<()> {
        match self {
            Self::Nothing => bail!("what was given by its URL is not ours to stop"),
            Self::Container(container) => {
                container.stop().await?;
                tokio::time::sleep(away).await;
                container.restart().await
            }
            Self::RabbitMq(server) => {
                server.stop().await;
                tokio::time::sleep(away).await;
                server.launch().await
            }
            Self::Postgres(server) => {
                server.crash().await;
                tokio::time::sleep(away).await;
                server.launch().await
            }
        }
    }
}

/// Where services are found.
#[derive(Debug, Clone)]
pub struct ServiceUrls {
    /// RabbitMQ, as a user who may make virtual hosts.
    pub amqp_url: String,
    /// Its management API, with user and password.
    pub rabbitmq_api_url: String,
    /// PostgreSQL, as a user who may create databases.
    pub database_url: String,
}

impl ServiceUrls {
    /// What `dev-services run` has set.
    ///
    /// # Errors
    ///
    /// A sentence that names what is not set, and says how to get it.
    pub fn from_env() -> Result<Self> {
        let required = |name: &str| {
            variable(name).with_context(|| {
                format!("{name} is not set: run the tests with `make test`, which brings the services")
            })
        };
        Ok(Self {
            amqp_url: required(AMQP_URL)?,
            rabbitmq_api_url: required(RABBITMQ_API_URL_VAR)?,
            database_url: required(DATABASE_URL)?,
        })
    }

    /// Those of services that were obtained.
    pub fn from_services(rabbitmq: &RabbitMq, postgres: &Postgres) -> Self {
        Self {
            amqp_url: rabbitmq.amqp_url.clone(),
            rabbitmq_api_url: rabbitmq.api_url.clone(),
            database_url: postgres.url.clone(),
        }
    }
}

/// Obtains services, and keeps their files until it is dropped, which must be after them.
pub struct ServiceProvider {
    folder: TempDir,
    install_lock: Mutex<()>,
    containers_only: bool,
}

impl ServiceProvider {
    /// A supply with a folder of its own below `target`; below the system's temporary folder where servers that root starts as
    /// another user cannot reach `target`.
    ///
    /// # Errors
    ///
    /// Where the folder cannot be made.
    pub fn new() -> Result<Self> {
        let target = programs::target_folder()?;
        let use_temp_dir = rustix::process::geteuid().is_root() && !is_accessible_to_others(&target);
        let parent = if use_temp_dir { std::env::temp_dir() } else { target };
        let folder = tempfile::Builder::new()
            .prefix("dev-services-")
            .permissions(public_folder_permissions())
            .tempdir_in(&parent);
        let folder = folder.with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        Ok(Self { folder, install_lock: Mutex::new(()), containers_only: false })
    }

    /// The same, from a Docker engine and from nowhere else.
    ///
    /// # Errors
    ///
    /// As [`Supply::new`].
    pub fn with_containers_only() -> Result<Self> {
        Ok(Self { containers_only: true, ..Self::new()? })
    }

    /// RabbitMQ and PostgreSQL, side by side.
    ///
    /// # Errors
    ///
    /// A sentence for each that cannot be had.
    pub async fn obtain_all(&self) -> Result<(RabbitMq, Postgres)> {
        match tokio::join!(self.rabbitmq(), self.postgres()) {
            (Ok(rabbitmq), Ok(postgres)) => Ok((rabbitmq, postgres)),
            (Err(one), Err(other)) => Err(anyhow!("{one:#}\n{other:#}")),
            (Err(one), Ok(_)) | (Ok(_), Err(one)) => Err(one),
        }
    }

    /// RabbitMQ, with its management API.
    ///
    /// # Errors
    ///
    /// A sentence that says how to get it.
    pub async fn rabbitmq(&self) -> Result<RabbitMq> {
        if !self.containers_only
            && let Some(given) = given_rabbitmq()?
        {
            return Ok(given);
        }
        let no_container = match docker::rabbitmq().await {
            Ok(container) => return Ok(container),
            Err(why) => self.elsewhere(why)?,
        };
        let program = self.installed(rabbitmq::find, "RabbitMQ", "rabbitmq-server", AMQP_URL, &no_container).await?;
        let folder = self.folder.path().join("rabbitmq");
        twice(&folder, async |folder| rabbitmq::start(&program, folder).await).await
    }

    /// PostgreSQL, as a user who may create databases.
    ///
    /// # Errors
    ///
    /// A sentence that says how to get it.
    pub async fn postgres(&self) -> Result<Postgres> {
        if !self.containers_only
            && let Some(url) = variable(DATABASE_URL)
        {
            return Ok(Postgres { url, origin: format!("given by {DATABASE_URL}"), kept: Kept::Nothing });
        }
        let no_container = match docker::postgres().await {
            Ok(container) => return Ok(container),
            Err(why) => self.elsewhere(why)?,
        };
        let programs = self.installed(postgres::find, "PostgreSQL", "postgresql", DATABASE_URL, &no_container).await?;
        let folder = self.folder.path().join("postgres");
        twice(&folder, async |folder| postgres::start(&programs, folder).await).await
    }

    /// Why there is no container, where that is no reason to give up.
    fn elsewhere(&self, container_error: anyhow::Error) -> Result<anyhow::Error> {
        if self.containers_only {
            return Err(container_error
                .context("a Docker engine is needed that can give rabbitmq:3-management and postgres:15"));
        }
        Ok(container_error)
    }

    /// What `find` finds, after an installation if need be.
    async fn installed(
        &self,
        find: impl Fn() -> Option<PathBuf>,
        name: &str,
        package: &str,
        variable: &str,
        container_error: &anyhow::Error,
    ) -> Result<PathBuf> {
        if let Some(found) = find() {
            return Ok(found);
        }
        let _install_guard = self.install_lock.lock().await;
        let installed =
            install::install_package(package).and_then(|()| find().context("it is not where it was looked for"));
        installed.map_err(|install_error| {
            anyhow!(
                "{name} is needed: set {variable}, or start a Docker engine ({container_error:#}), or install the package \
                 {package} ({install_error:#})"
            )
        })
    }
}

impl RabbitMq {
    /// Stops it, if it was started for us.
    pub async fn stop(self) {
        self.kept.stop().await;
    }

    /// Stops it in order, and starts it again after this time with all it held.
    ///
    /// # Errors
    ///
    /// Where it was given by its URL, or does not come back.
    pub async fn restart_after(&mut self, away: Duration) -> Result<()> {
        self.kept.restart_after(away).await
    }
}

impl Postgres {
    /// Stops it, if it was started for us.
    pub async fn stop(self) {
        self.kept.stop().await;
    }

    /// Lets it crash, and starts it again after this time with all that was committed.
    ///
    /// # Errors
    ///
    /// Where it was given by its URL, or does not come back.
    pub async fn restart_after(&mut self, away: Duration) -> Result<()> {
        self.kept.restart_after(away).await
    }
}

fn given_rabbitmq() -> Result<Option<RabbitMq>> {
    let Some(amqp_url) = variable(AMQP_URL) else { return Ok(None) };
    let api_url = match variable(RABBITMQ_API_URL_VAR) {
        Some(api_url) => api_url,
        None => default_api_url(&amqp_url)
            .with_context(|| format!("{AMQP_URL} is no URL; or set {RABBITMQ_API_URL_VAR}"))?,
    };
    Ok(Some(RabbitMq { amqp_url, api_url, origin: format!("given by {AMQP_URL}"), kept: Kept::Nothing }))
}

/// The management API at its usual port.
fn default_api_url(amqp_url: &str) -> Result<String> {
    let amqp = url::Url::parse(amqp_url)?;
    let user = if amqp.username().is_empty() { "guest" } else { amqp.username() };
    let password = amqp.password().unwrap_or("guest");
    Ok(format!("http://{user}:{password}@{}:15672", amqp.host_str().unwrap_or("127.0.0.1")))
}

/// Starts a server, and where that fails once more with other ports: they are chosen before they are used, and whoever connects
/// anywhere in between may get one of them.
async fn twice<T>(folder: &Path, start: impl AsyncFn(&Path) -> Result<T>) -> Result<T> {
    match start(&folder.join("1")).await {
        Ok(server) => Ok(server),
        Err(why) => {
            print_status(&format!("{why:#}\ndev-services: it is tried once more with other ports"));
            start(&folder.join("2")).await
        }
    }
}

/// The servers' own folders below it are theirs alone.
fn public_folder_permissions() -> std::fs::Permissions {
    std::fs::Permissions::from_mode(0o755)
}

/// Whether every folder above lets other users through.
fn is_accessible_to_others(path: &Path) -> bool {
    path.ancestors()
        .filter_map(|folder| folder.metadata().ok())
        .all(|metadata| metadata.permissions().mode() & 0o001 == 0o001)
}
