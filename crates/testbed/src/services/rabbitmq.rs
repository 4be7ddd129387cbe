//! A private RabbitMQ of installed binaries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpStream;

use super::{Kept, RabbitMq, Server};
use crate::process::{self, Process, Signal, bound_to_us, tail};
use crate::wait::free_addresses;

/// From its start until its management API answers; usually 7 seconds.
const START_LIMIT: Duration = Duration::from_secs(90);

/// The server's own script. The one in Debian's /usr/sbin would insist on its own user.
pub(super) fn find() -> Option<PathBuf> {
    process::find(&[
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        "/opt/homebrew/sbin/rabbitmq-server",
        "/usr/local/sbin/rabbitmq-server",
    ])
}

pub(super) async fn start(program: &Path, folder: &Path) -> Result<RabbitMq> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let [amqp, api, dist, epmd] = free_addresses()?;
    let config = folder.join("rabbitmq.conf");
    let lines = format!(
        "listeners.tcp.1 = {amqp}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\nlog.console = true\n",
        api.port()
    );
    std::fs::write(&config, lines)?;
    let plugins = folder.join("enabled_plugins");
    std::fs::write(&plugins, "[rabbitmq_management].\n")?;
    let mut servers = Vec::new();
    servers.extend(port_mapper(epmd, folder).await?);

    let log = folder.join("rabbitmq.log");
    let mut command = bound_to_us(program, "TERM");
    // Nothing of the user's own broker: neither its environment nor its files.
    command
        .env_clear()
        .current_dir(folder)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin")
        .env("LANG", "C.UTF-8")
        .env("HOME", folder)
        .env("ERL_EPMD_PORT", epmd.port().to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", format!("testbed-{}@localhost", amqp.port()))
        .env("RABBITMQ_DIST_PORT", dist.port().to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
        .env("RABBITMQ_CONFIG_FILE", &config)
        .env("RABBITMQ_CONFIG_FILES", folder.join("none.d"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("none.config"))
        .env("RABBITMQ_CONF_ENV_FILE", folder.join("none.env"))
        .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_PID_FILE", folder.join("pid"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", &plugins);
    let mut process = Process::logged("rabbitmq-server", command, &log)?;
    let api_url = format!("http://guest:guest@{api}");
    let started = ready(&mut process, &api_url).await;
    started.with_context(|| format!("RabbitMQ did not start; the end of its log:\n{}", tail(&log)))?;
    // The broker goes first, its port mapper after it. In order, though it takes seconds: a kill would leave its children to
    // whoever is process 1, and in containers that is often nobody who cares.
    servers.insert(0, Server { process, stop: Signal::TERM });
    Ok(RabbitMq {
        amqp_url: format!("amqp://guest:guest@{amqp}/%2f"),
        api_url,
        origin: format!("a private process, {amqp}"),
        kept: Kept::Processes(servers),
    })
}

/// Erlang's port mapper, which would otherwise be started as a daemon that stays.
async fn port_mapper(address: std::net::SocketAddr, folder: &Path) -> Result<Option<Server>> {
    let Some(program) = process::find(&["/usr/bin/epmd", "/opt/homebrew/bin/epmd", "/usr/local/bin/epmd"]) else {
        return Ok(None);
    };
    let mut command = bound_to_us(&program, "TERM");
    command.args(["-port", &address.port().to_string(), "-address", "127.0.0.1"]).current_dir(folder);
    let mut process = Process::logged("epmd", command, &folder.join("epmd.log"))?;
    process.until("epmd's port", START_LIMIT, async || TcpStream::connect(address).await.ok()).await?;
    Ok(Some(Server { process, stop: Signal::TERM }))
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
