//! A virtual host, a database, a folder and a sandbox of a test's own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use sea_orm::{ConnectionTrait, Database as Connect, FromQueryResult, JsonValue, Statement};
use serde_json::Value;
use stability_sandbox::{Sandbox, Settings};
use tempfile::TempDir;
use testbed::process::{Process, Signal, tail};
use testbed::{programs, services, variable, wait};
use tokio::process::Command;
use url::Url;
use uuid::Uuid;

use crate::{LIMIT, Producer};

/// Which database a world has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// The embedded default.
    Sqlite,
    /// Production's.
    Postgres,
}

/// Everything a worker needs, shared with no other test.
pub struct World {
    folder: TempDir,
    /// The test's virtual host.
    pub amqp_url: String,
    /// Where the test finds the worker's database.
    database_url: String,
    /// Stability's API.
    pub sandbox: Sandbox,
    given: Vec<(&'static str, String)>,
    _vhost: Vhost,
    _database: Option<PostgresDatabase>,
}

impl World {
    /// A world on the worker's embedded defaults.
    pub async fn new() -> Result<Self> {
        Self::with(Database::Sqlite).await
    }

    /// A world with this database.
    pub async fn with(database: Database) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let vhost = Vhost::make().await?;
        let sandbox = Sandbox::start(Settings { limit: 10_000, ..Settings::default() }).await?;
        let sqlite = format!("sqlite://{}/data/asset-worker.db", folder.path().display());
        let postgres = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(PostgresDatabase::make().await?),
        };
        let given = postgres.iter().map(|database| ("DATABASE_URL", database.url.clone())).collect();
        Ok(Self {
            amqp_url: vhost.amqp_url.clone(),
            database_url: postgres.as_ref().map_or(sqlite, |database| database.url.clone()),
            folder,
            sandbox,
            given,
            _vhost: vhost,
            _database: postgres,
        })
    }

    /// Sets an environment variable for every program of this world that is started from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.given.push((name, value.into()));
    }

    /// Where the worker's `data` folder is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A stored file.
    pub fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join("data/assets").join(path)
    }

    /// `asset-worker` with this world's settings: short delays, so that what is retried is retried at once.
    pub fn asset_worker(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs::built("asset-worker")?);
        command
            .args(arguments)
            .env_clear()
            .current_dir(self.folder.path())
            .env("AMQP_URL", &self.amqp_url)
            .env("STABILITY_API_KEY", "sk-sandbox")
            .env("STABILITY_BASE_URL", self.sandbox.base_url())
            .env("STABILITY_RATE_LIMIT", "6000")
            .env("STABILITY_RETRY_DELAYS", "20ms,50ms,100ms")
            .env("STABILITY_LOCKOUT", "0s")
            .env("WORKER_JOB_RETRY_DELAYS", "200ms")
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("LOG_FORMAT", "json");
        // Where coverage is measured, the program must write it where it is looked for.
        if let Some(profile) = variable("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", profile);
        }
        for (name, value) in &self.given {
            command.env(name, value);
        }
        Ok(command)
    }

    /// Runs a command of `asset-worker` to its end.
    pub async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.asset_worker(arguments)?;
        command.stdin(Stdio::null()).kill_on_drop(true);
        tokio::time::timeout(LIMIT, command.output())
            .await
            .with_context(|| format!("{arguments:?} does not end"))?
            .map_err(Into::into)
    }

    /// Starts a worker, and waits for nothing.
    pub fn start_worker(&self) -> Result<Worker> {
        let http_addr = wait::free_address()?;
        let mut command = self.asset_worker(&["run"])?;
        command.env("HTTP_ADDR", http_addr.to_string());
        let log = self.folder.path().join(format!("worker-{}.log", http_addr.port()));
        let process = Process::logged("asset-worker run", command, &log)?;
        Ok(Worker { process, log, http_addr })
    }

    /// Starts a worker that takes commands.
    pub async fn worker(&self) -> Result<Worker> {
        let mut worker = self.start_worker()?;
        worker.ready().await?;
        Ok(worker)
    }

    /// Connects to the broker.
    pub async fn producer(&self) -> Result<Producer> {
        Producer::connect(&self.amqp_url).await
    }

    /// Rows of the worker's database.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Value>> {
        let database = Connect::connect(&self.database_url).await?;
        let statement = Statement::from_string(database.get_database_backend(), sql);
        let rows = JsonValue::find_by_statement(statement).all(&database).await;
        database.close().await?;
        Ok(rows?)
    }
}

/// A running `asset-worker run`. Dropped, it is stopped; where the test fails, the end of its log is shown.
pub struct Worker {
    process: Process,
    log: PathBuf,
    http_addr: SocketAddr,
}

impl Worker {
    /// Waits until it takes commands.
    pub async fn ready(&mut self) -> Result<()> {
        let log = self.log.clone();
        wait::until("the worker to be ready", LIMIT, async || {
            let alive = self.process.is_running();
            match self.probe("readyz").await {
                Ok((200, _)) => Some(Ok(())),
                _ if alive => None,
                _ => Some(Err(anyhow!("it ended:\n{}", tail(&log)))),
            }
        })
        .await?
    }

    /// Asks a probe: status and body.
    pub async fn probe(&self, path: &str) -> Result<(u16, Value)> {
        let answer = testbed::http()?.get(format!("http://{}/{path}", self.http_addr)).send().await?;
        let status = answer.status().as_u16();
        Ok((status, serde_json::from_str(&answer.text().await?)?))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        tokio::time::timeout(LIMIT, self.process.wait()).await.context("the worker does not end")?
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a log line that holds this text.
    pub async fn has_logged(&self, text: &str) -> Result<()> {
        wait::until(&format!("a log line with {text:?}"), LIMIT, async || self.log().contains(text).then_some(())).await
    }
}

impl Drop for Worker {
    #[expect(clippy::print_stderr, reason = "shown by the test harness where the test fails")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of {}:\n{}", self.log.display(), tail(&self.log));
        }
        // In order, so that what it measured of itself (its coverage) is written.
        self.process.stop_blocking(Signal::TERM, Duration::from_secs(5));
    }
}

fn needed(name: &str) -> Result<String> {
    variable(name)
        .with_context(|| format!("{name} is not set: run the tests with `make test`, which brings the services"))
}

struct Vhost {
    amqp_url: String,
    api_url: String,
    name: String,
}

impl Vhost {
    async fn make() -> Result<Self> {
        let name = format!("test-{}", Uuid::now_v7().simple());
        let mut amqp_url = Url::parse(&needed(services::AMQP_URL)?)?;
        let user = if amqp_url.username().is_empty() { "guest" } else { amqp_url.username() }.to_owned();
        amqp_url.set_path(&name);
        let vhost = Self { amqp_url: amqp_url.into(), api_url: needed(services::RABBITMQ_API_URL)?, name };
        let http = testbed::http()?;
        let made =
            http.put(vhost.resource("vhosts")).header("content-type", "application/json").body("{}").send().await?;
        ensure!(made.status().is_success(), "the virtual host was not made: {}", made.status());
        let rights = r#"{"configure": ".*", "write": ".*", "read": ".*"}"#;
        let permissions = format!("{}/{user}", vhost.resource("permissions"));
        let granted = http.put(permissions).header("content-type", "application/json").body(rights).send().await?;
        ensure!(granted.status().is_success(), "the rights were not granted: {}", granted.status());
        Ok(vhost)
    }

    fn resource(&self, kind: &str) -> String {
        format!("{}/api/{kind}/{}", self.api_url.trim_end_matches('/'), self.name)
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        let url = self.resource("vhosts");
        at_last(async move { testbed::http()?.delete(url).send().await.map(drop).map_err(Into::into) });
    }
}

struct PostgresDatabase {
    url: String,
    server_url: String,
    name: String,
}

impl PostgresDatabase {
    async fn make() -> Result<Self> {
        let server_url = needed(services::DATABASE_URL)?;
        let name = format!("test_{}", Uuid::now_v7().simple());
        let mut url = Url::parse(&server_url)?;
        url.set_path(&name);
        let server = Connect::connect(&server_url).await?;
        server.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
        server.close().await?;
        Ok(Self { url: url.into(), server_url, name })
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let (server_url, name) = (self.server_url.clone(), self.name.clone());
        at_last(async move {
            let server = Connect::connect(&server_url).await?;
            server.execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
            Ok(server.close().await?)
        });
    }
}

/// Cleans up at the end of a test, from a place where nothing can be awaited. What cannot be removed harms no other test.
fn at_last(work: impl Future<Output = Result<()>> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), work).await? })
    });
    let _ = thread.join();
}
