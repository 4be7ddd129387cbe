//! The main job, once, with everything real but Stability's API.

mod api;
mod sheet;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::process::Command;
use uuid::Uuid;

use crate::process::{Process, Signal, bound_to_us, tail};
use crate::services::{Supply, Vhost};
use crate::wait::free_addresses;
use crate::{programs, variable};
use api::Api;

/// What the demo asks for. The phrase book has the English of two; the sandbox refuses one, as the API's moderation would.
const DESCRIPTIONS: [&str; 6] = [
    "A lighthouse on a rocky island at dusk",
    "雨後的繁忙城市街道",
    "一座寧靜的山景，晨霧",
    "A gory battle in the mud",
    "Desert dunes under a full moon",
    "A ringed planet above a purple nebula in space",
];
/// The phrase book that comes with the program, so that the demo needs no translator.
const PHRASE_BOOK: &str = include_str!("../../../deploy/phrase-book.json");
const PHRASE_BOOK_FILE: &str = "phrase-book.json";
const PROJECT: u32 = 42;
/// The worker opens its database and its broker within this time.
const READY_LIMIT: Duration = Duration::from_mins(1);
const GRACE: Duration = Duration::from_secs(30);

/// Plays the demo: services up, one job, a contact sheet, services down.
///
/// # Errors
///
/// Where a service cannot be had, or the job does not end as it should. What was started is stopped all the same.
pub async fn play() -> Result<()> {
    let folder = fresh_folder()?;
    print("The main job: six descriptions become finished 1920x1080 images.");
    let api = Api::chosen(DESCRIPTIONS.len());
    print("\nstarting");
    let supply = Supply::new()?;
    let rabbitmq = supply.rabbitmq().await?;
    step("RabbitMQ", &rabbitmq.origin);
    // Where the broker is the user's own, its default virtual host is none of our business either.
    let vhost = Vhost::make(&rabbitmq.amqp_url, &rabbitmq.api_url).await?;
    let (api, sandbox) = api.start(&folder).await?;
    step("API", api.name());
    std::fs::write(folder.join(PHRASE_BOOK_FILE), PHRASE_BOOK)?;
    step("words", "Chinese becomes English by a phrase book; GEMINI_API_KEY would translate the rest");
    let stage = Stage { folder, amqp_url: vhost.amqp_url.clone(), api };
    let worker = stage.worker().await?;
    step("worker", "on its embedded defaults: SQLite, local files");
    let outcome = stage.job().await;
    worker.stop(Signal::TERM, GRACE).await;
    if let Some(sandbox) = sandbox {
        sandbox.stop(Signal::TERM, GRACE).await;
    }
    drop(vhost);
    rabbitmq.stop().await;
    stage.farewell(&outcome?);
    Ok(())
}

/// An empty folder for this run; the last run's pictures go.
fn fresh_folder() -> Result<PathBuf> {
    let folder = programs::target()?.join("demo");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// A job's outcome, as the demo shows it.
struct Outcome {
    job_id: Uuid,
    sheet: PathBuf,
}

struct Stage {
    folder: PathBuf,
    amqp_url: String,
    api: Api,
}

impl Stage {
    /// One of our programs, with the demo's settings and none of the user's: their database is none of our business.
    fn command(&self, mut command: Command) -> Command {
        command.env_clear().current_dir(&self.folder).env("AMQP_URL", &self.amqp_url);
        for kept in [
            "PATH",
            "HOME",
            "TERM",
            "LANG",
            "LC_ALL",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "NO_PROXY",
            "no_proxy",
        ] {
            if let Some(value) = variable(kept) {
                command.env(kept, value);
            }
        }
        command.env("TRANSLATION_PHRASE_BOOK", self.folder.join(PHRASE_BOOK_FILE));
        for (name, value) in self.api.settings() {
            command.env(name, value);
        }
        command
    }

    async fn worker(&self) -> Result<Process> {
        let [http_addr] = free_addresses()?;
        let log = self.folder.join("worker.log");
        let mut command = self.command(bound_to_us(&programs::built("asset-worker")?, "TERM"));
        command.arg("run").env("HTTP_ADDR", http_addr.to_string()).env("LOG_FORMAT", "text");
        let mut process = Process::logged("the worker", command, &log)?;
        let ready = ready(&mut process, http_addr).await;
        ready.with_context(|| format!("the worker did not get ready; the end of its log:\n{}", tail(&log)))?;
        Ok(process)
    }

    /// Submits the job, shows how it comes along and what it came to, and makes the contact sheet.
    async fn job(&self) -> Result<Outcome> {
        let job_id = Uuid::now_v7();
        let command = json!({"job_id": job_id, "project_id": PROJECT, "image_descriptions": DESCRIPTIONS});
        let file = self.folder.join("job.json");
        std::fs::write(&file, serde_json::to_string_pretty(&command)?)?;
        let asset_worker = programs::built("asset-worker")?;
        print(&format!("\nasset-worker submit --wait --file {}", file.display()));
        let mut submit = self.command(Command::new(&asset_worker));
        submit.args(["submit", "--wait", "--file"]).arg(&file);
        let status = Process::start("asset-worker submit", submit)?.wait().await?;
        ensure!(
            status.success(),
            "the job did not complete ({status}); see {}",
            self.folder.join("worker.log").display()
        );
        let mut show = self.command(Command::new(&asset_worker));
        let shown = show.args(["jobs", "show", "--json", &job_id.to_string()]).kill_on_drop(true).output().await?;
        if !shown.status.success() {
            bail!("asset-worker jobs show: {}", String::from_utf8_lossy(&shown.stderr));
        }
        let job = serde_json::from_slice(&shown.stdout).context("asset-worker jobs show printed no JSON")?;
        let sheet = self.folder.join("contact-sheet.html");
        std::fs::write(&sheet, sheet::page(&job))?;
        Ok(Outcome { job_id, sheet })
    }

    fn farewell(&self, outcome: &Outcome) {
        let asset_worker = programs::built("asset-worker").unwrap_or_default();
        let (folder, asset_worker) = (self.folder.display(), asset_worker.display());
        print(&format!("\nthe pictures   {folder}/data/assets/projects/{PROJECT}/assets/"));
        print(&format!("contact sheet  {}", outcome.sheet.display()));
        print(&format!("worker's log   {folder}/worker.log"));
        print(&format!("phrase book    {folder}/{PHRASE_BOOK_FILE}"));
        print("\nWhat to try next:");
        print(&format!("  cd '{folder}' && '{asset_worker}' jobs show {}", outcome.job_id));
        print(&format!("  '{asset_worker}' inspect '{folder}/data/assets/projects/{PROJECT}/assets/image_003.png'"));
        print(&format!("  '{asset_worker}' --help"));
        print("  make test                                        every test, against real services");
        print("  STABILITY_API_KEY=sk-... DEMO_LIVE=1 make demo   the same with real pictures");
    }
}

async fn ready(process: &mut Process, http_addr: SocketAddr) -> Result<()> {
    let http = crate::http()?;
    let url = format!("http://{http_addr}/readyz");
    process
        .until("the worker to be ready", READY_LIMIT, async || {
            http.get(&url).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await
        .map(drop)
}

fn step(name: &str, what: &str) {
    print(&format!("  {name:<10}{what}"));
}

#[expect(clippy::print_stdout, reason = "the demo speaks to people")]
fn print(text: &str) {
    println!("{text}");
}
