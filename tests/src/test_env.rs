//! Test environment: a virtual host, a database, a folder and an API sandbox of one test's own.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::{Process, Signal, command_with_death_signal, log_tail};
use dev_services::services::{ServiceUrls, Vhost};
use dev_services::{env_var, programs, wait};
use sea_orm::{ConnectionTrait, Database as Connect, FromQueryResult, JsonValue, Statement};
use serde_json::Value;
use stability_sandbox::faults::FaultSpec;
use stability_sandbox::{Sandbox, Settings};
use tempfile::TempDir;
use tokio::process::Command;
use url::Url;
use uuid::Uuid;

use crate::{API_KEY, BrokerClient, Bucket, EventStream, Proxy, Samples, WAIT_TIMEOUT, bucket};

/// Database of a test environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// SQLite, the embedded default.
    Sqlite,
    /// PostgreSQL, as in production.
    Postgres,
}

/// Everything that a worker needs, shared with no other test.
pub struct TestEnv {
    folder: TempDir,
    /// AMQP URL of the test's own virtual host.
    pub amqp_url: String,
    /// URL by which the test reaches the worker's database.
    database_url: String,
    /// Sandbox of Stability's API.
    pub sandbox: Sandbox,
    env_vars: Vec<(&'static str, String)>,
    program: Option<PathBuf>,
    quiet: bool,
    vhost: Vhost,
    _database: Option<PostgresDatabase>,
}

impl TestEnv {
    /// Creates an environment with the worker's default database, SQLite.
    pub async fn new() -> Result<Self> {
        Self::with_database(Database::Sqlite).await
    }

    /// Creates an environment with this database on the services that `make test` provides.
    pub async fn with_database(database: Database) -> Result<Self> {
        Self::with_services(&ServiceUrls::from_env()?, database).await
    }

    /// Creates an environment with this database on these services.
    pub async fn with_services(services: &ServiceUrls, database: Database) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("env-").tempdir_in(programs::target_folder()?)?;
        let vhost = Vhost::create(&services.amqp_url, &services.rabbitmq_api_url).await?;
        let sandbox = Sandbox::start(Settings { limit: 10_000, ..Settings::default() }).await?;
        let sqlite = format!("sqlite://{}/data/asset-worker.db", folder.path().display());
        let postgres = match database {
            Database::Sqlite => None,
            Database::Postgres => Some(PostgresDatabase::create(&services.database_url).await?),
        };
        let given = postgres.iter().map(|database| ("DATABASE_URL", database.url.clone())).collect();
        Ok(Self {
            amqp_url: vhost.amqp_url.clone(),
            database_url: postgres.as_ref().map_or(sqlite, |database| database.url.clone()),
            folder,
            sandbox,
            env_vars: given,
            program: None,
            quiet: false,
            vhost,
            _database: postgres,
        })
    }

    /// Sets an environment variable for every program of this environment that is started from now on.
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.env_vars.retain(|(given, _)| *given != name);
        self.env_vars.push((name, value.into()));
    }

    /// The value of a setting that this environment sets.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        self.env_vars.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// Uses another build of `asset-worker` from now on; `None` is the one of this build.
    pub fn use_program(&mut self, program: Option<PathBuf>) {
        self.program = program;
    }

    /// Makes programs that are started from now on make small images of simple shapes, which take little time.
    pub fn make_images_small(&mut self) {
        self.sandbox.set_sketch(true);
        self.set("IMAGE_WIDTH", "320");
        self.set("IMAGE_HEIGHT", "180");
    }

    /// Makes workers that are started from now on print no log tail when they are dropped.
    pub fn disable_log_output(&mut self) {
        self.quiet = true;
    }

    /// Keeps the folder after the test, so that a failure can be investigated, and returns its path.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Starts a Gemini sandbox for every program that is started from now on.
    pub async fn start_gemini(&mut self) -> Result<gemini_sandbox::Sandbox> {
        let gemini = gemini_sandbox::Sandbox::start(gemini_sandbox::Settings::default()).await?;
        self.set("GEMINI_API_KEY", "gm-sandbox");
        self.set("GEMINI_BASE_URL", gemini.base_url());
        self.set("GEMINI_RETRY_DELAYS", "10ms,20ms,30ms");
        Ok(gemini)
    }

    /// Starts an S3 bucket in which every program started from now on stores its files, below a prefix.
    pub async fn start_bucket(&mut self) -> Result<Bucket> {
        let bucket = Bucket::start(self.folder.path()).await?;
        self.set("ASSET_STORAGE_URL", format!("s3://{}/renders/final", bucket::NAME));
        self.set("AWS_ACCESS_KEY_ID", bucket::ACCESS_KEY);
        self.set("AWS_SECRET_ACCESS_KEY", bucket::SECRET_KEY);
        self.set("AWS_REGION", "eu-central-1");
        self.set("AWS_ENDPOINT_URL", bucket.endpoint.clone());
        Ok(bucket)
    }

    /// Starts an open proxy through which every worker started from now on reaches the broker.
    pub async fn start_broker_proxy(&mut self) -> Result<Proxy> {
        let (proxy, url) = Proxy::in_front_of(&self.amqp_url, 5672).await?;
        self.set("AMQP_URL", url);
        Ok(proxy)
    }

    /// Starts an open proxy through which every worker started from now on reaches PostgreSQL.
    pub async fn start_database_proxy(&mut self) -> Result<Proxy> {
        let (proxy, url) = Proxy::in_front_of(&self.database_url, 5432).await?;
        self.set("DATABASE_URL", url);
        Ok(proxy)
    }

    /// Writes a phrase book and configures it for every program that is started from now on.
    pub fn write_phrase_book(&mut self, phrases: &Value) -> Result<()> {
        let file = self.folder.path().join("phrase-book.json");
        std::fs::write(&file, phrases.to_string())?;
        self.set("TRANSLATION_PHRASE_BOOK", file.display().to_string());
        Ok(())
    }

    /// Injects a fault into all API requests, or only into those whose prompt contains this text.
    pub fn inject_fault(&self, fault: &str, prompt_contains: Option<&str>) -> Result<()> {
        self.inject_fault_times(fault, None, prompt_contains)
    }

    /// Injects a fault like [`inject_fault`](Self::inject_fault), but into at most this number of requests.
    pub fn inject_fault_times(&self, fault: &str, times: Option<u32>, prompt_contains: Option<&str>) -> Result<()> {
        let prompt_contains = prompt_contains.map(str::to_owned);
        let order = FaultSpec { fault: fault.to_owned(), times, prompt_contains };
        self.sandbox.inject_fault(order).map_err(anyhow::Error::msg)
    }

    /// Runs a job with `generate` and returns its terminal event and its log.
    pub async fn generate(&self, command: &Value) -> Result<GenerateOutput> {
        let file = self.folder.path().join(format!("{}.json", Uuid::now_v7()));
        std::fs::write(&file, command.to_string())?;
        let output = self.run(&["generate", "--json", "--file", &file.display().to_string()]).await?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let event: Value = serde_json::from_slice(&output.stdout).with_context(|| log.clone())?;
        Ok(GenerateOutput {
            event_type: event["type"].as_str().unwrap_or_default().to_owned(),
            data: event["data"].clone(),
            log,
        })
    }

    /// Folder that contains the worker's `data` folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Path of a stored file.
    pub fn stored_path(&self, path: &str) -> PathBuf {
        self.folder.path().join("data/assets").join(path)
    }

    /// Builds a command of a Python interpreter with the broker of this environment; `RECORD` is a file in its folder.
    pub fn python_command(&self, python: &Path, folder: &Path) -> Command {
        let mut command = command_with_death_signal(python, "TERM");
        command
            .current_dir(folder)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("AMQP_URL", &self.amqp_url)
            .env("RECORD", self.folder.path().join("record.jsonl"));
        command
    }

    /// Builds an `asset-worker` command with the settings of this environment; short delays make retries immediate.
    pub fn asset_worker_command(&self, arguments: &[&str]) -> Result<Command> {
        let program = self.program.clone().map_or_else(|| programs::find("asset-worker"), Ok)?;
        let mut command = command_with_death_signal(&program, "TERM");
        command
            .args(arguments)
            .env_clear()
            .current_dir(self.folder.path())
            .env("AMQP_URL", &self.amqp_url)
            .env("STABILITY_API_KEY", API_KEY)
            .env("STABILITY_BASE_URL", self.sandbox.base_url())
            .env("STABILITY_RATE_LIMIT", "6000")
            .env("STABILITY_RETRY_DELAYS", "20ms,50ms,100ms")
            .env("STABILITY_LOCKOUT", "0s")
            .env("WORKER_JOB_RETRY_DELAYS", "200ms")
            .env("WORKER_LEASE", "3s")
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("API_ADDR", "127.0.0.1:0")
            .env("LOG_FORMAT", "json");
        // A coverage run collects the profiles from the path in this variable.
        if let Some(profile) = env_var("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", profile);
        }
        for (name, value) in &self.env_vars {
            command.env(name, value);
        }
        Ok(command)
    }

    /// Runs an `asset-worker` command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.asset_worker_command(arguments)?;
        command.stdin(Stdio::null()).kill_on_drop(true);
        tokio::time::timeout(WAIT_TIMEOUT, command.output())
            .await
            .with_context(|| format!("{arguments:?} did not exit in time"))?
            .map_err(Into::into)
    }

    /// Starts a worker, and connects a producer and a consumer of events.
    pub async fn start_worker_and_events(&self) -> Result<(Worker, BrokerClient, EventStream)> {
        let worker = self.start_ready_worker().await?;
        let producer = self.connect_broker().await?;
        let events = producer.subscribe_to_events().await?;
        Ok((worker, producer, events))
    }

    /// Waits until the sandbox has received this many image requests.
    pub async fn wait_for_requests(&self, expected: u32) -> Result<()> {
        let received = async || (self.sandbox.ledger().requests >= expected).then_some(());
        wait::wait_until("requests", WAIT_TIMEOUT, received).await
    }

    /// Starts a worker without waiting until it is ready.
    pub fn start_worker(&self) -> Result<Worker> {
        self.start(&["run"])
    }

    /// Starts an `asset-worker` command whose output goes into a log.
    pub fn start(&self, arguments: &[&str]) -> Result<Worker> {
        let command = self.asset_worker_command(arguments)?;
        let log = self.folder.path().join(format!("worker-{}.log", Uuid::now_v7().simple()));
        let process = Process::start_logged(&format!("asset-worker {}", arguments.join(" ")), command, &log)?;
        Ok(Worker { process, log, quiet: self.quiet })
    }

    /// Starts a worker and waits until it is ready.
    pub async fn start_ready_worker(&self) -> Result<Worker> {
        let mut worker = self.start_worker()?;
        worker.wait_until_ready().await?;
        Ok(worker)
    }

    /// Connects to the broker directly, not through a proxy.
    pub async fn connect_broker(&self) -> Result<BrokerClient> {
        BrokerClient::connect(&self.amqp_url).await
    }

    /// Returns the names of all existing queues.
    pub async fn queue_names(&self) -> Result<Vec<String>> {
        self.vhost.queue_names().await
    }

    /// URL of the worker's database, for direct connections.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// Changes the worker's database.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let database = Connect::connect(&self.database_url).await?;
        let result = database.execute_unprepared(sql).await;
        database.close().await?;
        result?;
        Ok(())
    }

    /// Queries rows of the worker's database.
    pub async fn query_rows(&self, sql: &str) -> Result<Vec<Value>> {
        let database = Connect::connect(&self.database_url).await?;
        let statement = Statement::from_string(database.get_database_backend(), sql);
        let rows = JsonValue::find_by_statement(statement).all(&database).await;
        database.close().await?;
        Ok(rows?)
    }
}

/// Result of a `generate` run.
pub struct GenerateOutput {
    event_type: String,
    /// `data` of the terminal event.
    pub data: Value,
    /// Log output.
    pub log: String,
}

impl GenerateOutput {
    /// Checks that the job has this outcome (`completed` or `failed`) and returns its `data`.
    pub fn expect_data(self, kind: &str) -> Result<Value> {
        anyhow::ensure!(
            self.event_type == format!("assets.generation.{kind}"),
            "{}: {}\n{}",
            self.event_type,
            self.data,
            self.log
        );
        Ok(self.data)
    }
}

/// What a process has used since its start.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// CPU time in user and kernel mode.
    pub cpu: Duration,
    /// Page faults that were served without a disk.
    pub page_faults: u64,
    /// The resident memory now, in KiB.
    pub memory_kib: u32,
    /// The largest resident memory, in KiB.
    pub peak_memory_kib: u32,
}

impl Usage {
    /// Reads what a process has used so far; `None` if there is no such process, or the system does not report it.
    pub fn of_process(pid: u32) -> Option<Self> {
        let folder = format!("/proc/{pid}");
        let stat = std::fs::read_to_string(format!("{folder}/stat")).ok()?;
        // Fields after the process name, which may contain anything. Minor page faults are field 10 of the line, user and
        // system time are fields 14 and 15, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        let status = std::fs::read_to_string(format!("{folder}/status")).ok()?;
        let kib = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().strip_suffix(" kB")?.parse().ok()
        };
        Some(Self {
            cpu: Duration::from_millis((number(11)? + number(12)?) * 10),
            page_faults: number(7)?,
            memory_kib: kib("VmRSS:")?,
            peak_memory_kib: kib("VmHWM:")?,
        })
    }
}

/// A running `asset-worker run`; dropping it stops the process.
pub struct Worker {
    process: Process,
    log: PathBuf,
    quiet: bool,
}

impl Worker {
    /// Waits until `/readyz` answers 200.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let log = self.log.clone();
        let ready = self.process.wait_until("the worker to be ready", WAIT_TIMEOUT, async || {
            probe(&log, "readyz").await.ok().filter(|(status, _)| *status == 200)
        });
        ready.await.map(drop).with_context(|| log_tail(&log))
    }

    /// Requests a health endpoint; returns status and JSON body.
    pub async fn probe(&self, path: &str) -> Result<(u16, Value)> {
        probe(&self.log, path).await
    }

    /// Requests any path; returns status and text.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let answer = dev_services::http_client()?.get(format!("http://{}/{path}", self.address()?)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Scrapes the worker's metrics.
    pub async fn metrics(&self) -> Result<Samples> {
        Ok(Samples::parse(&self.get("metrics").await?.1))
    }

    /// Address of the health endpoints.
    pub fn address(&self) -> Result<String> {
        logged_address(&self.log)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until the process exits.
    pub async fn wait_for_exit(&mut self) -> Result<ExitStatus> {
        tokio::time::timeout(WAIT_TIMEOUT, self.process.wait()).await.context("the worker did not exit in time")?
    }

    /// Process id; `None` after it has exited.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Returns what the process has used so far; `None` if the system does not report it.
    pub fn usage(&self) -> Option<Usage> {
        Usage::of_process(self.process.id()?)
    }

    /// Returns whether the process is still running.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Kills the worker as soon as it has reached this failpoint.
    pub async fn kill_at_failpoint(&mut self, point: &str) -> Result<()> {
        self.wait_for_log(&format!("\"point\":\"{point}\"")).await?;
        self.signal(Signal::KILL);
        self.wait_for_exit().await?;
        Ok(())
    }

    /// Log output so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a log line that contains this text.
    pub async fn wait_for_log(&self, text: &str) -> Result<()> {
        wait::wait_until(&format!("a log line with {text:?}"), WAIT_TIMEOUT, async || {
            self.log().contains(text).then_some(())
        })
        .await
    }
}

impl Drop for Worker {
    #[expect(clippy::print_stderr, reason = "the test harness shows it when the test fails")]
    fn drop(&mut self) {
        if !self.quiet {
            eprintln!("last lines of {}:\n{}", self.log.display(), log_tail(&self.log));
        }
        // SIGTERM lets the process write its coverage profile.
        self.process.stop_blocking(Signal::TERM, Duration::from_secs(5));
    }
}

/// Reads the address of the health endpoints from the log.
fn logged_address(log: &Path) -> Result<String> {
    let text = std::fs::read_to_string(log)?;
    let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let address = lines.find_map(|line| Some(line["address"].as_str()?.to_owned()));
    address.context("the worker has not logged the address of its health endpoints")
}

/// Requests a health endpoint at the address in the log.
async fn probe(log: &Path, path: &str) -> Result<(u16, Value)> {
    let address = logged_address(log)?;
    let answer = dev_services::http_client()?.get(format!("http://{address}/{path}")).send().await?;
    let status = answer.status().as_u16();
    Ok((status, serde_json::from_str(&answer.text().await?)?))
}

struct PostgresDatabase {
    url: String,
    server_url: String,
    name: String,
}

impl PostgresDatabase {
    async fn create(server_url: &str) -> Result<Self> {
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
        dev_services::run_cleanup_blocking(async move {
            let server = Connect::connect(&server_url).await?;
            server.execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
            Ok(server.close().await?)
        });
    }
}
