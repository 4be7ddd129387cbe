//! A virtual host, a database, a folder and a sandbox of a test's own.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::{Process, Signal, bound_to_us, tail};
use dev_services::services::{Addresses, Vhost};
use dev_services::{programs, variable, wait};
use sea_orm::{ConnectionTrait, Database as Connect, FromQueryResult, JsonValue, Statement};
use serde_json::Value;
use stability_sandbox::faults::FaultOrder;
use stability_sandbox::{Sandbox, Settings};
use tempfile::TempDir;
use tokio::process::Command;
use url::Url;
use uuid::Uuid;

use crate::{Bucket, LIMIT, Producer, Proxy, Samples, bucket};

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
    quiet: bool,
    vhost: Vhost,
    _database: Option<PostgresDatabase>,
}

impl World {
    /// A world on the worker's embedded defaults.
    pub async fn new() -> Result<Self> {
        Self::with(Database::Sqlite).await
    }

    /// A world with this database, on the services that `make test` has brought.
    pub async fn with(database: Database) -> Result<Self> {
        Self::on(&Addresses::given()?, database).await
    }

    /// A world with this database, on these services.
    pub async fn on(services: &Addresses, database: Database) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("world-").tempdir_in(programs::target()?)?;
        let vhost = Vhost::make(&services.amqp_url, &services.rabbitmq_api_url).await?;
        let sandbox = Sandbox::start(Settings { limit: 10_000, ..Settings::default() }).await?;
        let sqlite = format!("sqlite://{}/data/asset-worker.db", folder.path().display());
        let postgres = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(PostgresDatabase::make(&services.database_url).await?),
        };
        let given = postgres.iter().map(|database| ("DATABASE_URL", database.url.clone())).collect();
        Ok(Self {
            amqp_url: vhost.amqp_url.clone(),
            database_url: postgres.as_ref().map_or(sqlite, |database| database.url.clone()),
            folder,
            sandbox,
            given,
            quiet: false,
            vhost,
            _database: postgres,
        })
    }

    /// Sets an environment variable for every program of this world that is started from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.given.retain(|(given, _)| *given != name);
        self.given.push((name, value.into()));
    }

    /// Lets workers that are started from now on say nothing when they are dropped.
    pub fn be_quiet(&mut self) {
        self.quiet = true;
    }

    /// Keeps its folder for whoever wants to know what went wrong.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Starts a translator of this world's own, for every program that is started from now on.
    pub async fn gemini(&mut self) -> Result<gemini_sandbox::Sandbox> {
        let gemini = gemini_sandbox::Sandbox::start(gemini_sandbox::Settings::default()).await?;
        self.set("GEMINI_API_KEY", "gm-sandbox");
        self.set("GEMINI_BASE_URL", gemini.base_url());
        self.set("GEMINI_RETRY_DELAYS", "10ms,20ms,30ms");
        Ok(gemini)
    }

    /// Lets files go to a bucket, below a prefix, for every program that is started from now on.
    pub async fn bucket(&mut self) -> Result<Bucket> {
        let bucket = Bucket::start(self.folder.path()).await?;
        self.set("ASSET_STORAGE_URL", format!("s3://{}/renders/final", bucket::NAME));
        self.set("AWS_ACCESS_KEY_ID", bucket::ACCESS_KEY);
        self.set("AWS_SECRET_ACCESS_KEY", bucket::SECRET_KEY);
        self.set("AWS_REGION", "eu-central-1");
        self.set("AWS_ENDPOINT_URL", bucket.endpoint.clone());
        Ok(bucket)
    }

    /// Lets every worker that is started from now on reach the broker through a proxy, which is open.
    pub async fn broker_proxy(&mut self) -> Result<Proxy> {
        let (proxy, url) = Proxy::before(&self.amqp_url, 5672).await?;
        self.set("AMQP_URL", url);
        Ok(proxy)
    }

    /// Lets every worker that is started from now on reach its PostgreSQL through a proxy, which is open.
    pub async fn database_proxy(&mut self) -> Result<Proxy> {
        let (proxy, url) = Proxy::before(&self.database_url, 5432).await?;
        self.set("DATABASE_URL", url);
        Ok(proxy)
    }

    /// Writes a phrase book, and sets it.
    pub fn phrase_book(&mut self, phrases: &Value) -> Result<()> {
        let file = self.folder.path().join("phrase-book.json");
        std::fs::write(&file, phrases.to_string())?;
        self.set("TRANSLATION_PHRASE_BOOK", file.display().to_string());
        Ok(())
    }

    /// Lets the API's requests of prompts that hold this text meet a fault.
    pub fn order(&self, fault: &str, prompt_contains: Option<&str>) -> Result<()> {
        self.order_times(fault, None, prompt_contains)
    }

    /// The same for so many requests.
    pub fn order_times(&self, fault: &str, times: Option<u32>, prompt_contains: Option<&str>) -> Result<()> {
        let prompt_contains = prompt_contains.map(str::to_owned);
        let order = FaultOrder { fault: fault.to_owned(), times, prompt_contains };
        self.sandbox.order(order).map_err(anyhow::Error::msg)
    }

    /// Does a job by `generate`: its terminal event, and what was logged.
    pub async fn generate(&self, command: &Value) -> Result<Done> {
        let file = self.folder.path().join(format!("{}.json", Uuid::now_v7()));
        std::fs::write(&file, command.to_string())?;
        let output = self.run(&["generate", "--json", "--file", &file.display().to_string()]).await?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let event: Value = serde_json::from_slice(&output.stdout).with_context(|| log.clone())?;
        Ok(Done { kind: event["type"].as_str().unwrap_or_default().to_owned(), data: event["data"].clone(), log })
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
        let mut command = bound_to_us(&programs::built("asset-worker")?, "TERM");
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
            .env("WORKER_LEASE", "3s")
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
        let command = self.asset_worker(&["run"])?;
        let log = self.folder.path().join(format!("worker-{}.log", Uuid::now_v7().simple()));
        let process = Process::logged("asset-worker run", command, &log)?;
        Ok(Worker { process, log, quiet: self.quiet })
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

    /// The names of all queues that are there.
    pub async fn queues(&self) -> Result<Vec<String>> {
        self.vhost.queues().await
    }

    /// Its database, for whoever comes by another way.
    pub fn database_url(&self) -> &str {
        &self.database_url
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

/// What a job came to.
pub struct Done {
    kind: String,
    /// The `data` of its terminal event.
    pub data: Value,
    /// What was logged.
    pub log: String,
}

impl Done {
    /// The outcome, which must be this one: `completed` or `failed`.
    pub fn data_of(self, kind: &str) -> Result<Value> {
        anyhow::ensure!(self.kind == format!("assets.generation.{kind}"), "{}: {}\n{}", self.kind, self.data, self.log);
        Ok(self.data)
    }
}

/// A running `asset-worker run`. Dropped, it is stopped.
pub struct Worker {
    process: Process,
    log: PathBuf,
    quiet: bool,
}

impl Worker {
    /// Waits until it takes commands.
    pub async fn ready(&mut self) -> Result<()> {
        let log = self.log.clone();
        let ready = self.process.until("the worker to be ready", LIMIT, async || {
            probe(&log, "readyz").await.ok().filter(|(status, _)| *status == 200)
        });
        ready.await.map(drop).with_context(|| tail(&log))
    }

    /// Asks a probe: status and body.
    pub async fn probe(&self, path: &str) -> Result<(u16, Value)> {
        probe(&self.log, path).await
    }

    /// Asks for any path: status and text.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let answer = dev_services::http()?.get(format!("http://{}/{path}", self.address()?)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Reads its metrics.
    pub async fn metrics(&self) -> Result<Samples> {
        Ok(Samples::read(&self.get("metrics").await?.1))
    }

    /// Where its probes are.
    pub fn address(&self) -> Result<String> {
        address(&self.log)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        tokio::time::timeout(LIMIT, self.process.wait()).await.context("the worker does not end")?
    }

    /// The CPU time that it has used, where the system says so.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()?)).ok()?;
        // The fields after the name, which may hold anything: user and system time are the 14th and 15th of all, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10))
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
        if !self.quiet {
            eprintln!("the end of {}:\n{}", self.log.display(), tail(&self.log));
        }
        // In order, so that what it measured of itself (its coverage) is written.
        self.process.stop_blocking(Signal::TERM, Duration::from_secs(5));
    }
}

/// The address of the probes, as it was logged.
fn address(log: &Path) -> Result<String> {
    let text = std::fs::read_to_string(log)?;
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let address = lines.find_map(|line| Some(line["address"].as_str()?.to_owned()));
    address.context("the worker has not said where its probes are")
}

/// Asks a probe at the address that the worker has logged.
async fn probe(log: &Path, path: &str) -> Result<(u16, Value)> {
    let address = address(log)?;
    let answer = dev_services::http()?.get(format!("http://{address}/{path}")).send().await?;
    let status = answer.status().as_u16();
    Ok((status, serde_json::from_str(&answer.text().await?)?))
}

struct PostgresDatabase {
    url: String,
    server_url: String,
    name: String,
}

impl PostgresDatabase {
    async fn make(server_url: &str) -> Result<Self> {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let mut url = Url::parse(server_url)?;
        url.set_path(&name);
        let server = Connect::connect(server_url).await?;
        server.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
        server.close().await?;
        Ok(Self { url: url.into(), server_url: server_url.to_owned(), name })
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let (server_url, name) = (self.server_url.clone(), self.name.clone());
        dev_services::at_last(async move {
            let server = Connect::connect(&server_url).await?;
            server.execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
            Ok(server.close().await?)
        });
    }
}
