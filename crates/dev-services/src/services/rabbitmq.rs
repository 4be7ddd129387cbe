//! A private RabbitMQ server, started from installed binaries.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::{RabbitMq, ServiceHandle};
use crate::process::{self, Process, Signal, command_with_death_signal, log_tail};
use crate::wait::free_addresses;

/// Limit from the start until the management API answers, which usually takes 7 seconds.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// Time from the stop signal until the process is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const CONFIG_FILE: &str = "rabbitmq.conf";
const PLUGINS_FILE: &str = "enabled_plugins";

/// Finds the server's own script. Debian's wrapper in `/usr/sbin` runs only as its own user.
pub(super) fn find() -> Option<PathBuf> {
    process::find(&[
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
        "/opt/homebrew/sbin/rabbitmq-server",
        "/usr/local/sbin/rabbitmq-server",
    ])
}

/// A RabbitMQ server with its own folder.
pub(super) struct PrivateServer {
    program: PathBuf,
    folder: PathBuf,
    amqp_address: SocketAddr,
    distribution_address: SocketAddr,
    epmd_address: SocketAddr,
    api_url: String,
    process: Option<Process>,
    epmd_process: Option<Process>,
}

pub(super) async fn start(program: &Path, folder: &Path) -> Result<RabbitMq> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let [amqp, api, dist, epmd] = free_addresses()?;
    let lines = format!(
        "listeners.tcp.1 = {amqp}\nmanagement.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {}\nlog.console = true\n",
        api.port()
    );
    std::fs::write(folder.join(CONFIG_FILE), lines)?;
    std::fs::write(folder.join(PLUGINS_FILE), "[rabbitmq_management].\n")?;
    let api_url = format!("http://guest:guest@{api}");
    let mut private = PrivateServer {
        program: program.to_owned(),
        folder: folder.to_owned(),
        amqp_address: amqp,
        distribution_address: dist,
        epmd_address: epmd,
        api_url: api_url.clone(),
        process: None,
        epmd_process: None,
    };
    private.launch().await?;
    Ok(RabbitMq {
        amqp_url: format!("amqp://guest:guest@{amqp}/%2f"),
        api_url,
        origin: format!("a private process, {amqp}"),
        handle: ServiceHandle::RabbitMq(Box::new(private)),
    })
}

impl PrivateServer {
    /// Starts the broker with the data in its folder and returns when it answers.
    pub(super) async fn launch(&mut self) -> Result<()> {
        self.epmd_process = start_epmd(self.epmd_address, &self.folder).await?;
        let log = self.folder.join("rabbitmq.log");
        let command = self.command(&self.program);
        let process = self.process.insert(Process::start_logged("rabbitmq-server", command, &log)?);
        let started = wait_until_ready(process, &self.api_url).await;
        started.with_context(|| format!("RabbitMQ did not start; end of its log:\n{}", log_tail(&log)))
    }

    /// Runs `rabbitmqctl` on this node and returns its output.
    pub(super) async fn control(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(&self.program.with_file_name("rabbitmqctl")).args(arguments).output().await?;
        let printed = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(output.status.success(), "rabbitmqctl {arguments:?}: {printed:?}");
        Ok(printed.concat())
    }

    /// A command with the environment of this node. The environment and the files of the user's own broker do not
    /// apply.
    fn command(&self, program: &Path) -> Command {
        let folder = &self.folder;
        let mut command = command_with_death_signal(program, "TERM");
        command
            .env_clear()
            .current_dir(folder)
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", self.epmd_address.port().to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("dev-services-{}@localhost", self.amqp_address.port()))
            .env("RABBITMQ_DIST_PORT", self.distribution_address.port().to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("RABBITMQ_CONFIG_FILE", folder.join(CONFIG_FILE))
            .env("RABBITMQ_CONFIG_FILES", folder.join("none.d"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder.join("none.config"))
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("none.env"))
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join(PLUGINS_FILE));
        command
    }

    /// Stops the broker, then its port mapper.
    ///
    /// Both stop gracefully, although that takes seconds: after a kill their children would be left to process 1, which
    /// often does not reap processes in containers.
    pub(super) async fn stop(&mut self) {
        for process in [self.process.take(), self.epmd_process.take()].into_iter().flatten() {
            process.stop(Signal::TERM, STOP_TIMEOUT).await;
        }
    }
}

/// Starts Erlang's port mapper. The broker would start it as a daemon that keeps running.
async fn start_epmd(address: SocketAddr, folder: &Path) -> Result<Option<Process>> {
    let Some(program) = process::find(&["/usr/bin/epmd", "/opt/homebrew/bin/epmd", "/usr/local/bin/epmd"]) else {
        return Ok(None);
    };
    let mut command = command_with_death_signal(&program, "TERM");
    command.args(["-port", &address.port().to_string(), "-address", "127.0.0.1"]).current_dir(folder);
    let mut process = Process::start_logged("epmd", command, &folder.join("epmd.log"))?;
    process.wait_until("epmd's port", START_TIMEOUT, async || TcpStream::connect(address).await.ok()).await?;
    Ok(Some(process))
}

async fn wait_until_ready(process: &mut Process, api_url: &str) -> Result<()> {
    let http = crate::http_client()?;
    // The test of the default virtual host succeeds only when everything has started.
    let url = format!("{api_url}/api/aliveness-test/%2f");
    process
        .wait_until("RabbitMQ's management API", START_TIMEOUT, async || {
            http.get(&url).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await
        .map(drop)
}
