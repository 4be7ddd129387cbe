//! The demo: runs two jobs with a real broker and a real worker. A sandbox replaces Stability's API unless
//! `DEMO_LIVE=1` and a key are set. With `DEMO_KEEP=1` it also serves the pages, and everything runs until Ctrl-C.

mod api;
mod contact_sheet;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::process::Command;
use uuid::Uuid;

use crate::process::{Process, Signal, command_with_death_signal, log_tail};
use crate::services::{ServiceProvider, Vhost};
use crate::wait::free_addresses;
use crate::{env_var, programs};
use api::Api;

/// Descriptions of the first job. The phrase book translates the two Chinese ones; the sandbox rejects one, as the
/// API's moderation would.
const DESCRIPTIONS: [&str; 6] = [
    "雨後的繁忙城市街道",
    "A lighthouse on a rocky island at dusk",
    "一座寧靜的山景，晨霧",
    "A gory battle in the mud",
    "Desert dunes under a full moon",
    "A ringed planet above a purple nebula in space",
];
/// The phrase book in `deploy/`; with it the demo needs no translation API.
const PHRASE_BOOK: &str = include_str!("../../../deploy/phrase-book.json");
const PHRASE_BOOK_FILE: &str = "phrase-book.json";
const PROJECT_ID: u32 = 42;
/// Limit for the worker to connect to its database and its broker.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// Runs the demo: starts the services, runs two jobs, writes a contact sheet and stops the services. The second job
/// makes the first image again, with the fast upscaler.
///
/// # Errors
///
/// If a service is unavailable or a job does not complete. Everything that was started is stopped in this case too.
pub async fn run() -> Result<()> {
    let folder = create_empty_folder()?;
    print_line("Two jobs: images of 1920x1080 for six descriptions, and one of them again with the fast upscaler.");
    let api = Api::from_env(DESCRIPTIONS.len() + 1, 1);
    print_line("\nstarting");
    let supply = ServiceProvider::new()?;
    let rabbitmq = supply.rabbitmq().await?;
    print_step("RabbitMQ", &rabbitmq.origin);
    // The broker may be the user's own, so the demo does not use its default virtual host.
    let vhost = Vhost::create(&rabbitmq.amqp_url, &rabbitmq.api_url).await?;
    let (api, sandbox) = api.start(&folder).await?;
    print_step("API", api.name());
    std::fs::write(folder.join(PHRASE_BOOK_FILE), PHRASE_BOOK)?;
    print_step("language", "a phrase book translates the Chinese texts; others would need GEMINI_API_KEY");
    let demo = Demo { folder, amqp_url: vhost.amqp_url.clone(), api };
    let worker = demo.start_worker().await?;
    print_step("worker", "with the embedded defaults: SQLite and local files");
    let is_kept = env_var("DEMO_KEEP").as_deref() == Some("1");
    let pages = if is_kept { Some(demo.serve_pages().await?) } else { None };
    let outcome = demo.run_jobs().await;
    if let (Some(pages), Ok(output)) = (&pages, &outcome) {
        demo.print_summary(output);
        print_line(&format!("\nThe pages are at {} until Ctrl-C.", pages.url));
        // The signal ends the demo, and stops everything that it has started.
        std::future::pending::<()>().await;
    }
    for server in pages.map(|pages| pages.server).into_iter().chain([worker]).chain(sandbox) {
        server.stop(Signal::TERM, SHUTDOWN_GRACE).await;
    }
    drop(vhost);
    rabbitmq.stop().await;
    demo.print_summary(&outcome?);
    Ok(())
}

/// Creates an empty folder for this run. The files of the last run are deleted.
fn create_empty_folder() -> Result<PathBuf> {
    let folder = programs::target_folder()?.join("demo");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("cannot delete {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Results that the summary shows.
struct DemoOutput {
    job_id: Uuid,
    contact_sheet: PathBuf,
}

/// The running server of the pages.
struct Pages {
    url: String,
    server: Process,
}

struct Demo {
    folder: PathBuf,
    amqp_url: String,
    api: Api,
}

impl Demo {
    /// Replaces the environment of a command by the demo's settings, so that the user's settings, such as the database,
    /// do not apply.
    fn with_demo_env(&self, mut command: Command) -> Command {
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
            if let Some(value) = env_var(kept) {
                command.env(kept, value);
            }
        }
        command.env("TRANSLATION_PHRASE_BOOK", self.folder.join(PHRASE_BOOK_FILE));
        for (name, value) in self.api.env_vars() {
            command.env(name, value);
        }
        command
    }

    async fn start_worker(&self) -> Result<Process> {
        let [http_addr] = free_addresses()?;
        let log = self.folder.join("worker.log");
        let mut command = self.with_demo_env(command_with_death_signal(&programs::find("asset-worker")?, "TERM"));
        command.arg("run").env("HTTP_ADDR", http_addr.to_string()).env("LOG_FORMAT", "text");
        let mut process = Process::start_logged("the worker", command, &log)?;
        let ready = wait_until_ready(&mut process, http_addr).await;
        ready.with_context(|| format!("the worker did not become ready; end of its log:\n{}", log_tail(&log)))?;
        Ok(process)
    }

    /// Starts `asset-worker serve`.
    async fn serve_pages(&self) -> Result<Pages> {
        let [address] = free_addresses()?;
        let log = self.folder.join("pages.log");
        let mut command = self.with_demo_env(command_with_death_signal(&programs::find("asset-worker")?, "TERM"));
        command.arg("serve").env("API_ADDR", address.to_string()).env("LOG_FORMAT", "text");
        let mut server = Process::start_logged("the server of the pages", command, &log)?;
        let ready = wait_until_ready(&mut server, address).await;
        ready.with_context(|| format!("the pages are not served; end of the log:\n{}", log_tail(&log)))?;
        let url = format!("http://{address}/");
        print_step("pages", &url);
        Ok(Pages { url, server })
    }

    /// Runs both jobs and writes the contact sheet.
    async fn run_jobs(&self) -> Result<DemoOutput> {
        let job_id = Uuid::now_v7();
        let command = json!({"job_id": job_id, "project_id": PROJECT_ID, "image_descriptions": DESCRIPTIONS});
        let job = self.run_job("job.json", job_id, &command).await?;
        // With the same seed, the same image.
        let upscaled_id = Uuid::now_v7();
        let seed = &job["assets"][0]["metadata"]["seed"];
        let config = json!({"upscaler": "fast", "seed": seed, "cache": "never"});
        let command = json!({"job_id": upscaled_id, "project_id": PROJECT_ID, "image_descriptions": DESCRIPTIONS[..1], "config": config});
        let upscaled = self.run_job("upscaled-job.json", upscaled_id, &command).await?;
        let sheet = self.folder.join("contact-sheet.html");
        std::fs::write(&sheet, contact_sheet::render_page(&[job, upscaled]))?;
        Ok(DemoOutput { job_id, contact_sheet: sheet })
    }

    /// Submits a job, shows its progress and result, and returns it as `asset-worker jobs show --json` prints it.
    async fn run_job(&self, file_name: &str, job_id: Uuid, command: &Value) -> Result<Value> {
        let file = self.folder.join(file_name);
        std::fs::write(&file, serde_json::to_string_pretty(command)?)?;
        let asset_worker = programs::find("asset-worker")?;
        print_line(&format!("\nasset-worker submit --wait --file {}", file.display()));
        let mut submit = self.with_demo_env(Command::new(&asset_worker));
        submit.args(["submit", "--wait", "--file"]).arg(&file);
        let status = Process::start("asset-worker submit", submit)?.wait().await?;
        ensure!(
            status.success(),
            "the job did not complete ({status}); see {}",
            self.folder.join("worker.log").display()
        );
        let mut show = self.with_demo_env(Command::new(&asset_worker));
        let shown = show.args(["jobs", "show", "--json", &job_id.to_string()]).kill_on_drop(true).output().await?;
        if !shown.status.success() {
            bail!("asset-worker jobs show failed: {}", String::from_utf8_lossy(&shown.stderr));
        }
        serde_json::from_slice(&shown.stdout).context("asset-worker jobs show printed invalid JSON")
    }

    fn print_summary(&self, outcome: &DemoOutput) {
        let asset_worker = programs::find("asset-worker").unwrap_or_default();
        let (folder, asset_worker) = (self.folder.display(), asset_worker.display());
        print_line(&format!("\nimages         {folder}/data/assets/projects/{PROJECT_ID}/assets/"));
        print_line(&format!("contact sheet  {}", outcome.contact_sheet.display()));
        print_line(&format!("worker log     {folder}/worker.log"));
        print_line(&format!("phrase book    {folder}/{PHRASE_BOOK_FILE}"));
        print_line("\nNext steps:");
        print_line(&format!("  cd '{folder}' && '{asset_worker}' jobs show {}", outcome.job_id));
        print_line(&format!(
            "  '{asset_worker}' inspect '{folder}/data/assets/projects/{PROJECT_ID}/assets/image_003.png'"
        ));
        print_line(&format!("  '{asset_worker}' --help"));
        print_line("  DEMO_KEEP=1 make demo                            look at the pages while everything runs");
        print_line("  make test                                        run all tests with real services");
        print_line("  STABILITY_API_KEY=sk-... DEMO_LIVE=1 make demo   run the demo with real images");
    }
}

async fn wait_until_ready(process: &mut Process, http_addr: SocketAddr) -> Result<()> {
    let http = crate::http_client()?;
    let url = format!("http://{http_addr}/readyz");
    process
        .wait_until("it to be ready", READY_TIMEOUT, async || {
            http.get(&url).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await
        .map(drop)
}

fn print_step(name: &str, what: &str) {
    print_line(&format!("  {name:<10}{what}"));
}

#[expect(clippy::print_stdout, reason = "the demo prints its progress")]
fn print_line(text: &str) {
    println!("{text}");
}
