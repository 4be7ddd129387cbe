//! A private RabbitMQ of installed binaries.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpStream;

use super::{Kept, RabbitMq};
use crate::process::{self, Process, Signal, bound_to_us, tail};
use crate::wait::free_addresses;

/// From its start until its management API answers; usually 7 seconds.
const START_LIMIT: Duration = Duration::from_secs(90);

/// From its being told to stop until it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const CONFIG: &str = "rabbitmq.conf";
const PLUGINS: &str = "enabled_plugins";

/// The server's own script. The one in Debian's /usr/sbin would insist on its own user.
pub(super) fn find() -> Option<PathBuf> {
    process::find(&[
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        "/opt/homebrew/sbin/rabbitmq-server",
        "/usr/local/sbin/rabbitmq-server",
    ])
}

/// A broker of our own, with a folder of its own.
pub(super) struct Private {
    program: PathBuf,
    folder: PathBuf,
    amqp: SocketAddr,
    dist: SocketAddr,
    epmd: SocketAddr,
    api_url: String,
    process: Option<Process>,
    port_mapper: Option<Process>,
}

pub(super) async fn start(program: &Path, folder: &Path) -> Result<RabbitMq> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let [amqp, api, dist, epmd] = free_addresses()?;
    let lines = format!(
        "listeners.tcp.1 = {amqp}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\nlog.console = true\n",
        api.port()
    );
    std::fs::write(folder.join(CONFIG), lines)?;
    std::fs::write(folder.join(PLUGINS), "[rabbitmq_management].\n")?;
    let api_url = format!("http://guest:guest@{api}");
    let mut private = Private {
        program: program.to_owned(),
        folder: folder.to_owned(),
        amqp,
        dist,
        epmd,
        api_url: api_url.clone(),
        process: None,
        port_mapper: None,
    };
    private.launch().await?;
    Ok(RabbitMq {
        amqp_url: format!("amqp://guest:guest@{amqp}/%2f"),
        api_url,
        origin: format!("a private process, {amqp}"),
        kept: Kept::RabbitMq(Box::new(private)),
    })
}

impl Private {
    /// Starts the broker on what is in its folder, and returns when it answers.
    pub(super) async fn launch(&mut self) -> Result<()> {
        let folder = &self.folder;
        self.port_mapper = port_mapper(self.epmd, folder).await?;
        let log = folder.join("rabbitmq.log");
        let mut command = bound_to_us(&self.program, "TERM");
        // Nothing of the user's own broker: neither its environment nor its files.
        command
            .env_clear()
            .current_dir(folder)
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", self.epmd.port().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("dev-services-{}@localhost", self.amqp.port()))
            .env("RABBITMQ_DIST_PORT", self.dist.port().to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("RABBITMQ_CONFIG_FILE", folder.join(CONFIG))
            .env("RABBITMQ_CONFIG_FILES", folder.join("none.d"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("none.config"))
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("none.env"))
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join(PLUGINS));
        let process = self.process.insert(Process::logged("rabbitmq-server", command, &log)?);
        let started = ready(process, &self.api_url).await;
        started.with_context(|| format!("RabbitMQ did not start; the end of its log:\n{}", tail(&log)))
    }

    /// Stops it, the broker first and its port mapper after it. In order, though it takes seconds: a kill would leave its children to
    /// whoever is process 1, and in containers that is often nobody who cares.
    pub(super) async fn stop(&mut self) {
        for process in [self.process.take(), self.port_mapper.take()].into_iter().flatten() {
            process.stop(Signal::TERM, STOP_LIMIT).await;
        }
    }
}

/// Erlang's port mapper, which would otherwise be started as a daemon that stays.
async fn port_mapper(address: SocketAddr, folder: &Path) -> Result<Option<Process>> {
    let Some(program) = process::find(&["/usr/bin/epmd", "/opt/homebrew/bin/epmd", "/usr/local/bin/epmd"]) else {
        return Ok(None);
    };
    let mut command = bound_to_us(&program, "TERM");
    command.args(["-port", &address.port().to_string(), "-address", "127.0.0.1"]).current_dir(folder);
    let mut process = Process::logged("epmd", command, &folder.join("epmd.log"))?;
    process.until("epmd's port", START_LIMIT, async || TcpStream::connect(address).await.ok()).await?;
    Ok(Some(process))
}

async fn ready(process: &mut Process, api_url: &str) -> Result<()> {
    let http = crate::http()?;
    // The queues of the default virtual host can be asked for only when everything has started.
    let url = format!("{api_url}/api/aliveness-test/%2f");
    process
        .until("RabbitMQ's management API", START_LIMIT, async || {
            http.get(&url).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await
        .map(drop)
}
