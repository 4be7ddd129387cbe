//! Obtains RabbitMQ and PostgreSQL for tests and the demo.
//!
//! The first of these sources that can provide a service is used: URLs in the environment; a Docker engine that can
//! provide the image; installed binaries, started as private processes on loopback with their own ports and folders; on
//! Debian and Ubuntu as root, packages, which are installed first. A broker or database that is already running is
//! never touched unless its URL is given.

mod browser;
#[cfg_attr(not(feature = "containers"), path = "services/no_docker.rs")]
mod docker;
pub(crate) mod install;
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

pub use browser::chromedriver;
pub use prometheus::programs as prometheus_programs;
pub use vhost::Vhost;

use crate::{env_var, print_status, programs};

/// Environment variable with the AMQP URL of RabbitMQ.
pub const AMQP_URL_VAR: &str = "TEST_AMQP_URL";
/// Environment variable with the URL of RabbitMQ's management API, including user and password.
pub const RABBITMQ_API_URL_VAR: &str = "TEST_RABBITMQ_API_URL";
/// Environment variable with the URL of PostgreSQL; its user must be allowed to create databases.
pub const DATABASE_URL_VAR: &str = "TEST_DATABASE_URL";

/// Environment variable with the folder of the programs `prometheus` and `promtool`.
pub const PROMETHEUS_VAR: &str = "TEST_PROMETHEUS";
/// Environment variable with the program `chromedriver`.
pub const CHROMEDRIVER_VAR: &str = "TEST_CHROMEDRIVER";

/// A running RabbitMQ.
pub struct RabbitMq {
    /// AMQP URL, `amqp://user:password@host:port/%2f`.
    pub amqp_url: String,
    /// URL of the management API, `http://user:password@host:port`.
    pub api_url: String,
    /// Human-readable source of the service.
    pub origin: String,
    handle: ServiceHandle,
}

/// A running PostgreSQL.
pub struct Postgres {
    /// URL, `postgres://user:password@host:port/postgres`.
    pub url: String,
    /// Human-readable source of the service.
    pub origin: String,
    handle: ServiceHandle,
}

/// The container or process of a service, which must be stopped at the end; none if the service was given by its URL.
enum ServiceHandle {
    Nothing,
    #[cfg(feature = "containers")]
    Container(Box<docker::Container>),
    RabbitMq(Box<rabbitmq::PrivateServer>),
    Postgres(Box<postgres::PrivateServer>),
}

impl ServiceHandle {
    async fn stop(self) {
        match self {
            Self::Nothing => {}
            #[cfg(feature = "containers")]
            Self::Container(container) => container.remove().await,
            Self::RabbitMq(mut server) => server.stop().await,
            Self::Postgres(mut server) => server.stop().await,
        }
    }

    /// Stops the service, waits for `away`, and starts it again at the same address with its data.
    async fn restart_after(&mut self, away: Duration) -> Result<()> {
        match self {
            Self::Nothing => bail!("a service that was given by its URL cannot be stopped"),
            #[cfg(feature = "containers")]
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

/// URLs of the services.
#[derive(Debug, Clone)]
pub struct ServiceUrls {
    /// AMQP URL of RabbitMQ; its user may create virtual hosts.
    pub amqp_url: String,
    /// URL of RabbitMQ's management API, including user and password.
    pub rabbitmq_api_url: String,
    /// URL of PostgreSQL; its user may create databases.
    pub database_url: String,
}

impl ServiceUrls {
    /// Reads the URLs from the environment, where `dev-services run` sets them.
    ///
    /// # Errors
    ///
    /// If a variable is not set; the message names it and says how to run the tests.
    pub fn from_env() -> Result<Self> {
        let required = |name: &str| {
            env_var(name).with_context(|| {
                format!("{name} is not set: run the tests with `make test`, which provides the services")
            })
        };
        Ok(Self {
            amqp_url: required(AMQP_URL_VAR)?,
            rabbitmq_api_url: required(RABBITMQ_API_URL_VAR)?,
            database_url: required(DATABASE_URL_VAR)?,
        })
    }

    /// Returns the URLs of running services.
    pub fn from_services(rabbitmq: &RabbitMq, postgres: &Postgres) -> Self {
        Self {
            amqp_url: rabbitmq.amqp_url.clone(),
            rabbitmq_api_url: rabbitmq.api_url.clone(),
            database_url: postgres.url.clone(),
        }
    }
}

/// Obtains services and owns the folder with their files.
///
/// Dropping it deletes the folder, so it must be dropped after the services.
pub struct ServiceProvider {
    folder: TempDir,
    install_lock: Mutex<()>,
    containers_only: bool,
}

impl ServiceProvider {
    /// Creates a provider with its own folder below `target`.
    ///
    /// Servers that root starts run as another user: if that user cannot access `target`, the folder is below the
    /// system's temporary folder.
    ///
    /// # Errors
    ///
    /// If the folder cannot be created.
    pub fn new() -> Result<Self> {
        let target = programs::target_folder()?;
        let use_temp_dir = rustix::process::geteuid().is_root() && !is_accessible_to_others(&target);
        let parent = if use_temp_dir { std::env::temp_dir() } else { target };
        let folder = tempfile::Builder::new()
            .prefix("dev-services-")
            .permissions(public_folder_permissions())
            .tempdir_in(&parent);
        let folder = folder.with_context(|| format!("cannot create a folder in {}", parent.display()))?;
        Ok(Self { folder, install_lock: Mutex::new(()), containers_only: false })
    }

    /// Like [`ServiceProvider::new`], but obtains services only from a Docker engine.
    ///
    /// # Errors
    ///
    /// As [`ServiceProvider::new`].
    pub fn with_containers_only() -> Result<Self> {
        Ok(Self { containers_only: true, ..Self::new()? })
    }

    /// Obtains RabbitMQ and PostgreSQL concurrently.
    ///
    /// # Errors
    ///
    /// If a service is unavailable; if both are, the message has a line for each.
    pub async fn obtain_all(&self) -> Result<(RabbitMq, Postgres)> {
        match tokio::join!(self.rabbitmq(), self.postgres()) {
            (Ok(rabbitmq), Ok(postgres)) => Ok((rabbitmq, postgres)),
            (Err(one), Err(other)) => Err(anyhow!("{one:#}\n{other:#}")),
            (Err(one), Ok(_)) | (Ok(_), Err(one)) => Err(one),
        }
    }

    /// Obtains RabbitMQ with its management API.
    ///
    /// # Errors
    ///
    /// If it is unavailable; the message says how to provide it.
    pub async fn rabbitmq(&self) -> Result<RabbitMq> {
        match rabbitmq_from_env()? {
            Some(given) if !self.containers_only => Ok(given),
            _ => self.own_rabbitmq().await,
        }
    }

    /// Starts a RabbitMQ that nothing else uses, even if the environment names one.
    ///
    /// # Errors
    ///
    /// As [`rabbitmq`](Self::rabbitmq).
    pub async fn own_rabbitmq(&self) -> Result<RabbitMq> {
        let no_container = match docker::rabbitmq().await {
            Ok(container) => return Ok(container),
            Err(why) => self.check_fallback_allowed(why)?,
        };
        let program =
            self.find_or_install(rabbitmq::find, "RabbitMQ", "rabbitmq-server", AMQP_URL_VAR, &no_container).await?;
        let folder = self.folder.path().join("rabbitmq");
        start_with_one_retry(&folder, async |folder| rabbitmq::start(&program, folder).await).await
    }

    /// Obtains PostgreSQL with a user that may create databases.
    ///
    /// # Errors
    ///
    /// If it is unavailable; the message says how to provide it.
    pub async fn postgres(&self) -> Result<Postgres> {
        if !self.containers_only
            && let Some(url) = env_var(DATABASE_URL_VAR)
        {
            return Ok(Postgres {
                url,
                origin: format!("given by {DATABASE_URL_VAR}"),
                handle: ServiceHandle::Nothing,
            });
        }
        let no_container = match docker::postgres().await {
            Ok(container) => return Ok(container),
            Err(why) => self.check_fallback_allowed(why)?,
        };
        let programs =
            self.find_or_install(postgres::find, "PostgreSQL", "postgresql", DATABASE_URL_VAR, &no_container).await?;
        let folder = self.folder.path().join("postgres");
        start_with_one_retry(&folder, async |folder| postgres::start(&programs, folder).await).await
    }

    /// Returns the error of the Docker engine if other sources are allowed; fails with it otherwise.
    fn check_fallback_allowed(&self, container_error: anyhow::Error) -> Result<anyhow::Error> {
        if self.containers_only {
            return Err(container_error
                .context("a Docker engine that can provide rabbitmq:4-management and postgres:17 is needed"));
        }
        Ok(container_error)
    }

    /// Returns what `find` returns; if that is none, installs the package and searches again.
    async fn find_or_install(
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
        let installed = install::install_package(package)
            .and_then(|()| find().context("its programs were not found after the installation"));
        installed.map_err(|install_error| {
            anyhow!(
                "{name} is needed: set {variable}, or start a Docker engine ({container_error:#}), or install the package \
                 {package} ({install_error:#})"
            )
        })
    }
}

impl RabbitMq {
    /// Stops the service; has no effect if it was given by its URL.
    pub async fn stop(self) {
        self.handle.stop().await;
    }

    /// Runs `rabbitmqctl` with these arguments and returns its output.
    ///
    /// # Errors
    ///
    /// If the service was given by its URL or the command fails.
    pub async fn control(&self, arguments: &[&str]) -> Result<String> {
        match &self.handle {
            ServiceHandle::RabbitMq(server) => server.control(arguments).await,
            #[cfg(feature = "containers")]
            ServiceHandle::Container(container) => container.execute(&[&["rabbitmqctl"], arguments].concat()).await,
            ServiceHandle::Nothing | ServiceHandle::Postgres(_) => bail!("rabbitmqctl needs a broker of this program"),
        }
    }

    /// Stops the broker gracefully and starts it again after `away`; its data is kept.
    ///
    /// # Errors
    ///
    /// If the service was given by its URL or does not start again.
    pub async fn restart_after(&mut self, away: Duration) -> Result<()> {
        self.handle.restart_after(away).await
    }
}

impl Postgres {
    /// Stops the service; has no effect if it was given by its URL.
    pub async fn stop(self) {
        self.handle.stop().await;
    }

    /// Crashes the server and starts it again after `away`; committed data is kept.
    ///
    /// # Errors
    ///
    /// If the service was given by its URL or does not start again.
    pub async fn restart_after(&mut self, away: Duration) -> Result<()> {
        self.handle.restart_after(away).await
    }
}

fn rabbitmq_from_env() -> Result<Option<RabbitMq>> {
    let Some(amqp_url) = env_var(AMQP_URL_VAR) else { return Ok(None) };
    let api_url = match env_var(RABBITMQ_API_URL_VAR) {
        Some(api_url) => api_url,
        None => default_api_url(&amqp_url)
            .with_context(|| format!("{AMQP_URL_VAR} is not a URL; correct it or set {RABBITMQ_API_URL_VAR}"))?,
    };
    Ok(Some(RabbitMq { amqp_url, api_url, origin: format!("given by {AMQP_URL_VAR}"), handle: ServiceHandle::Nothing }))
}

/// Returns the URL of the management API at its default port on the same host.
fn default_api_url(amqp_url: &str) -> Result<String> {
    let amqp = url::Url::parse(amqp_url)?;
    let user = if amqp.username().is_empty() { "guest" } else { amqp.username() };
    let password = amqp.password().unwrap_or("guest");
    Ok(format!("http://{user}:{password}@{}:15672", amqp.host_str().unwrap_or("127.0.0.1")))
}

/// Starts a server, and retries once with other ports if that fails.
///
/// Ports are chosen before the server binds them, so another connection may take one of them in between.
async fn start_with_one_retry<T>(folder: &Path, start: impl AsyncFn(&Path) -> Result<T>) -> Result<T> {
    match start(&folder.join("1")).await {
        Ok(server) => Ok(server),
        Err(why) => {
            print_status(&format!("{why:#}\ndev-services: retrying once with other ports"));
            start(&folder.join("2")).await
        }
    }
}

/// Other users may traverse the folder; the servers' own folders below it are private.
fn public_folder_permissions() -> std::fs::Permissions {
    std::fs::Permissions::from_mode(0o755)
}

/// Whether other users may traverse this folder and all its parents.
fn is_accessible_to_others(path: &Path) -> bool {
    path.ancestors()
        .filter_map(|folder| folder.metadata().ok())
        .all(|metadata| metadata.permissions().mode() & 0o001 == 0o001)
}
