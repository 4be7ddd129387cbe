//! The workers with their broker and database, and the disturbances applied to them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait::wait_until;
use fastrand::Rng;
use integration_tests::{API_KEY, BrokerClient, Database, Proxy, TestEnv, WAIT_TIMEOUT, Worker};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::expected_jobs::{API_TIMEOUT, ExpectedJob, conflicting_command};
use super::{Disturbance, Plan, Services};

/// Queue that collects all events until they are verified.
pub(super) const EVENT_QUEUE: &str = "chaos.events";
/// Grace period of the workers: from SIGTERM until requests in flight are dropped.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Unfinished jobs for each worker: two that it runs, and one that waits.
const OPEN_JOBS_PER_WORKER: usize = 3;
/// A job is cancelled among this many published last.
const NEWEST_JOBS: usize = 6;
/// Failpoints at which a worker is killed.
const FAILPOINTS: [&str; 7] =
    ["before_parse", "before_claim", "after_claim", "before_file", "before_row", "before_event", "after_event"];

/// A worker that receives a command reaches its failpoint within this time.
const FAILPOINT_TIMEOUT: Duration = Duration::from_secs(20);

/// An image: position of its job in the run, and index of the image in the job.
pub(super) type ImageKey = (usize, u32);

/// A worker with its own proxies in front of broker and database.
struct WorkerSlot {
    broker_proxy: Proxy,
    amqp_url: String,
    database_proxy: Proxy,
    database_url: String,
    worker: Worker,
}

/// A file in the place of the storage's folder, which is kept elsewhere meanwhile.
struct StorageOutage {
    folder: PathBuf,
    kept: PathBuf,
}

impl StorageOutage {
    fn begin(env: &TestEnv) -> Result<Self> {
        let (folder, kept) = (env.folder().join("data/assets"), env.folder().join("data/kept"));
        // Absent before the first image.
        std::fs::create_dir_all(&folder)?;
        std::fs::rename(&folder, &kept)?;
        std::fs::write(&folder, "")?;
        Ok(Self { folder, kept })
    }

    fn end(self) -> Result<()> {
        std::fs::remove_file(&self.folder)?;
        Ok(std::fs::rename(self.kept, self.folder)?)
    }
}

/// The query for the number of requests that were paid for a job.
pub(super) fn paid_requests(job_id: &str) -> String {
    format!("SELECT coalesce(sum(requests), 0) AS paid FROM assets WHERE job_id = '{job_id}'")
}

pub(super) struct Cluster {
    pub(super) env: TestEnv,
    pub(super) jobs: Vec<ExpectedJob>,
    pub(super) disturbance_counts: BTreeMap<Disturbance, u32>,
    /// How often a worker was interrupted while an image was unfinished: its request may have been repeated.
    pub(super) interruptions: BTreeMap<ImageKey, u32>,
    /// Messages that must become dead letters: body, and the start of the expected reason.
    pub(super) expected_dead_letters: Vec<(Vec<u8>, &'static str)>,
    /// Cancelled jobs with the number of requests that were paid for when the cancellation was recorded.
    pub(super) cancelled: Vec<(String, Value)>,
    /// Violations found during the run.
    pub(super) violations: Vec<String>,
    slots: Vec<WorkerSlot>,
    /// Number of published commands; the others are published as jobs end.
    published_count: usize,
    /// Failpoints that this round has not used yet.
    remaining_failpoints: Vec<&'static str>,
    first_outage: Duration,
    lease: Duration,
}

impl Cluster {
    pub(super) async fn start(plan: &Plan, services: &Services, expected_jobs: Vec<ExpectedJob>) -> Result<Self> {
        let mut env = TestEnv::with_services(&services.urls(), Database::Postgres).await?;
        env.disable_log_output();
        env.sandbox.set_sketch(true);
        env.sandbox.set_latency(Duration::from_millis(200));
        env.set("WORKER_LEASE", format!("{}s", plan.lease.as_secs()));
        // An attempt during an outage of the storage takes half a second and counts.
        env.set("WORKER_JOB_MAX_ATTEMPTS", "100");
        env.set("WORKER_SHUTDOWN_GRACE", format!("{}s", SHUTDOWN_GRACE.as_secs()));
        env.set("STABILITY_TIMEOUT", API_TIMEOUT);
        let mut seats = Vec::new();
        for _ in 0..plan.workers {
            let (broker, amqp_url) = Proxy::in_front_of(&env.amqp_url, 5672).await?;
            let (database, database_url) = Proxy::in_front_of(env.database_url(), 5432).await?;
            env.set("AMQP_URL", amqp_url.clone());
            env.set("DATABASE_URL", database_url.clone());
            let worker = env.start_ready_worker().await?;
            seats.push(WorkerSlot { broker_proxy: broker, amqp_url, database_proxy: database, database_url, worker });
        }
        env.connect_broker().await?.bind_event_queue(EVENT_QUEUE).await?;
        let rejected = expected_jobs
            .iter()
            .filter(|order| order.is_refused())
            .map(|order| (order.body.to_string().into_bytes(), "invalid_request"))
            .collect();
        let (done, lives_cut) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            env,
            jobs: expected_jobs,
            disturbance_counts: done,
            interruptions: lives_cut,
            expected_dead_letters: rejected,
            slots: seats,
            published_count: 0,
            remaining_failpoints: Vec::new(),
            first_outage: plan.first_outage,
            lease: plan.lease,
            cancelled: Vec::new(),
            violations: Vec::new(),
        })
    }

    /// Publishes enough commands to keep every worker busy and some waiting. Returns whether every job has ended.
    pub(super) async fn publish_next_jobs(&mut self) -> Result<bool> {
        let sql = "SELECT count(*) AS ended FROM jobs WHERE status IN ('completed', 'failed')";
        let ended = self.env.query_rows(sql).await?[0]["ended"].as_u64().context("count(*) is not a number")?;
        let ended = usize::try_from(ended)?;
        let wanted = (ended + OPEN_JOBS_PER_WORKER * self.slots.len()).min(self.jobs.len());
        if self.published_count < wanted {
            let producer = self.connect_broker().await?;
            while self.published_count < wanted {
                let job = &mut self.jobs[self.published_count];
                job.set_expiry();
                producer.publish(&job.body).await?;
                self.published_count += 1;
            }
        }
        Ok(ended == self.jobs.len())
    }

    /// Applies a disturbance and returns when it is over. A disturbance that is not possible now is not counted.
    pub(super) async fn apply(
        &mut self,
        disturbance: Disturbance,
        rng: &mut Rng,
        services: &mut Services,
    ) -> Result<()> {
        let slot = rng.usize(..self.slots.len());
        let job_index = rng.usize(..self.published_count.max(1));
        let short = Duration::from_secs(rng.u64(..5));
        let outage = if self.disturbance_counts.contains_key(&disturbance) { short } else { self.first_outage };
        self.check_workers();
        match disturbance {
            Disturbance::Kill => self.kill_worker(slot).await?,
            Disturbance::KillAtFailpoint => {
                if self.remaining_failpoints.is_empty() {
                    self.remaining_failpoints = FAILPOINTS.to_vec();
                    rng.shuffle(&mut self.remaining_failpoints);
                }
                let point = self.remaining_failpoints.pop().unwrap_or(FAILPOINTS[0]);
                if !self.kill_at_failpoint(slot, point).await? {
                    return Ok(());
                }
            }
            Disturbance::Terminate => {
                self.stop_worker(slot).await?;
                self.replace_worker(slot, "")?;
            }
            Disturbance::Freeze => self.freeze_worker(slot, false).await?,
            Disturbance::FreezeAndDisconnect => self.freeze_worker(slot, true).await?,
            Disturbance::DisconnectBroker => self.slots[slot].broker_proxy.drop_connections(),
            Disturbance::DisconnectDatabase => self.slots[slot].database_proxy.drop_connections(),
            Disturbance::RestartBroker => services.restart_broker(outage).await?,
            Disturbance::CrashDatabase => services.restart_database(outage).await?,
            Disturbance::BlockPublishing => services.block_publishing(short * 2).await?,
            Disturbance::StorageOutage => {
                let storage = StorageOutage::begin(&self.env)?;
                sleep(short * 2).await;
                storage.end()?;
            }
            Disturbance::StorageOutageAndKill => {
                let storage = StorageOutage::begin(&self.env)?;
                sleep(short).await;
                self.kill_worker(slot).await?;
                sleep(short).await;
                storage.end()?;
            }
            Disturbance::CloseGate => {
                self.run_until_success(&["pause", "--reason", "chaos"]).await?;
                sleep(short * 2).await;
                self.run_until_success(&["resume"]).await?;
            }
            Disturbance::CloseGateAndKill => {
                self.run_until_success(&["pause", "--reason", "chaos"]).await?;
                sleep(short).await;
                self.kill_worker(slot).await?;
                sleep(short).await;
                self.run_until_success(&["resume"]).await?;
            }
            Disturbance::RefuseKey | Disturbance::RefuseKeyAndKill => {
                self.env.sandbox.set_keys(&[]);
                sleep(short).await;
                if disturbance == Disturbance::RefuseKeyAndKill {
                    self.kill_worker(slot).await?;
                    sleep(short).await;
                }
                self.env.sandbox.set_keys(&[API_KEY]);
                // Otherwise the next probe would be due after half a minute or more.
                let due = "UPDATE account_keys SET probe_due_ms = 0 WHERE status <> 'accepted' RETURNING key_hash";
                self.query_rows(due).await?;
            }
            Disturbance::PublishDuplicate => self.connect_broker().await?.publish(&self.jobs[job_index].body).await?,
            Disturbance::PublishInvalid => {
                let body = format!("no command, {}", rng.u32(..)).into_bytes();
                self.connect_broker().await?.publish_bytes(&body, None).await?;
                self.expected_dead_letters.push((body, "invalid_request"));
            }
            Disturbance::PublishConflict => {
                let order = &self.jobs[job_index];
                // Only if its job is known: of two commands with the same id, the first one is accepted.
                let known = format!("SELECT id FROM jobs WHERE id = '{}'", order.job_id);
                if self.query_rows(&known).await?.is_empty() {
                    return Ok(());
                }
                let body = conflicting_command(order);
                self.connect_broker().await?.publish(&body).await?;
                self.expected_dead_letters.push((body.to_string().into_bytes(), "job_id_conflict"));
            }
            Disturbance::Cancel => {
                // One of the newest, so that it has seldom ended; the next job too, whose command is not published yet.
                let newest = self.published_count.min(self.jobs.len() - 1);
                let job_index = rng.usize(newest.saturating_sub(NEWEST_JOBS)..=newest);
                self.cancel(job_index).await?;
            }
            Disturbance::CancelAndKill => {
                let body = json!({"job_id": self.jobs[job_index].job_id}).to_string();
                self.connect_broker().await?.publish_cancel(body.as_bytes()).await?;
                self.kill_worker(slot).await?;
            }
            Disturbance::Retry => {
                if !self.retry(rng).await? {
                    return Ok(());
                }
            }
        }
        *self.disturbance_counts.entry(disturbance).or_default() += 1;
        Ok(())
    }

    /// Cancels a job, and notes what it had paid for by then.
    async fn cancel(&mut self, job_index: usize) -> Result<()> {
        let job_id = &self.jobs[job_index].job_id;
        let output = self.run_until_success(&["jobs", "cancel", "--json", job_id, "--reason", "chaos"]).await?;
        let result: Value = serde_json::from_slice(&output)?;
        if result["unchanged"] == 0 {
            let paid = self.query_rows(&paid_requests(job_id)).await?[0]["paid"].clone();
            self.cancelled.push((job_id.clone(), paid));
        }
        Ok(())
    }

    /// Makes the failed images of an ended job again. Returns false if there is no such job.
    async fn retry(&mut self, rng: &mut Rng) -> Result<bool> {
        let sql = "SELECT DISTINCT job_id FROM assets JOIN jobs ON jobs.id = job_id WHERE terminal_event IS NOT NULL \
                   AND assets.status = 'failed' AND assets.error_code <> 'content_policy'";
        let mut failed: Vec<String> =
            self.query_rows(sql).await?.iter().filter_map(|row| Some(row["job_id"].as_str()?.to_owned())).collect();
        failed.sort_unstable();
        let Some(job_id) = rng.choice(failed) else { return Ok(false) };
        let output = self.run_until_success(&["jobs", "retry", "--json", &job_id]).await?;
        let retries: Value = serde_json::from_slice(&output)?;
        let new_id = retries[0]["job_id"].as_str().context("the new job has no id")?;
        // A retry that has not ended is returned again.
        if self.jobs.iter().any(|job| job.job_id == new_id) {
            return Ok(true);
        }
        let indexes: Vec<usize> = serde_json::from_value(retries[0]["images"].clone())?;
        let row = self.query_rows(&format!("SELECT command FROM jobs WHERE id = '{new_id}'")).await?;
        let first = self.find_job(&json!(job_id)).context("the job is not one of this run")?;
        let job = first.retry(new_id, &indexes, row[0]["command"].clone());
        // Its command is published; those of the jobs behind it are not.
        self.jobs.insert(self.published_count, job);
        self.published_count += 1;
        Ok(true)
    }

    /// Runs an `asset-worker` command, with retries because the database may just have been restarted.
    async fn run_until_success(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let succeed = async || self.env.run(arguments).await.ok().filter(|output| output.status.success());
        Ok(wait_until(arguments[0], WAIT_TIMEOUT, succeed).await?.stdout)
    }

    /// Connects to the broker, with retries because it may just have been restarted.
    async fn connect_broker(&self) -> Result<BrokerClient> {
        wait_until("the broker", WAIT_TIMEOUT, async || self.env.connect_broker().await.ok()).await
    }

    async fn kill_worker(&mut self, slot: usize) -> Result<()> {
        // Frozen first, so that no image is started after the unfinished ones are read.
        self.slots[slot].worker.signal(Signal::STOP);
        let unfinished = self.unfinished_images(slot).await?;
        self.record_interruptions(unfinished);
        self.slots[slot].worker.signal(Signal::KILL);
        self.slots[slot].worker.wait_for_exit().await?;
        self.replace_worker(slot, "")
    }

    /// Starts another worker in a slot, with a failpoint unless `point` is empty.
    fn replace_worker(&mut self, seat: usize, point: &str) -> Result<()> {
        let taken = &mut self.slots[seat];
        self.env.set("AMQP_URL", taken.amqp_url.clone());
        self.env.set("DATABASE_URL", taken.database_url.clone());
        self.env.set("ASSET_WORKER_PAUSE_AT", point);
        taken.worker = self.env.start_worker()?;
        Ok(())
    }

    /// Kills a worker at a failpoint. Returns false if it was killed without having reached it.
    async fn kill_at_failpoint(&mut self, slot: usize, point: &str) -> Result<bool> {
        self.stop_worker(slot).await?;
        self.replace_worker(slot, point)?;
        let paused = format!("\"point\":\"{point}\"");
        let worker = &self.slots[slot].worker;
        let paused_there = async || worker.log().contains(&paused).then_some(());
        // A worker that receives no command never reaches the failpoint.
        let reached = wait_until("the failpoint", FAILPOINT_TIMEOUT, paused_there).await.is_ok();
        self.kill_worker(slot).await?;
        Ok(reached)
    }

    async fn stop_worker(&mut self, slot: usize) -> Result<()> {
        let unfinished = self.unfinished_images(slot).await?;
        let begun = std::time::Instant::now();
        self.slots[slot].worker.signal(Signal::TERM);
        let status = self.slots[slot].worker.wait_for_exit().await?;
        if !status.success() {
            self.violations.push(format!("a worker that was shut down exited with {status}"));
        }
        // Requests are dropped only if they take longer than the grace period.
        if begun.elapsed() >= SHUTDOWN_GRACE {
            self.record_interruptions(unfinished);
        }
        Ok(())
    }

    /// Freezes a worker until another one has taken over one of the running jobs and has completed an image of it.
    async fn freeze_worker(&mut self, slot: usize, cut: bool) -> Result<()> {
        self.slots[slot].worker.signal(Signal::STOP);
        let (unfinished, held) = (self.unfinished_images(slot).await?, self.running_claims().await?);
        self.record_interruptions(unfinished);
        if cut {
            self.slots[slot].broker_proxy.drop_connections();
            self.slots[slot].database_proxy.drop_connections();
        } else {
            // The worker stays connected, so the broker does not redeliver its commands. Publish them again, as a
            // producer may do, so that other workers receive them.
            let producer = self.connect_broker().await?;
            for order in self.jobs.iter().filter(|order| held.contains_key(&order.job_id)) {
                producer.publish(&order.body).await?;
            }
        }
        let taken_over = async || {
            let now = self.running_claims().await.ok()?;
            let (job, _) = now.into_iter().find(|(job, claims)| held.get(job).is_some_and(|known| claims > known))?;
            let finished = self.completed_images(&job).await.ok()?;
            Some((job, finished))
        };
        // If no job was running, or none has an image left, no job is taken over.
        if let Ok((job, finished)) = wait_until("a takeover by another worker", self.lease * 2, taken_over).await {
            let progressed = async || {
                let ended = !self.running_claims().await.ok()?.contains_key(&job);
                (ended || self.completed_images(&job).await.ok()? > finished).then_some(())
            };
            let _ = wait_until("one more completed image", self.lease * 2, progressed).await;
        }
        self.slots[slot].worker.signal(Signal::CONT);
        Ok(())
    }

    /// Running jobs, each with its fencing token.
    async fn running_claims(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.query_rows("SELECT id, lease_token FROM jobs WHERE status = 'running'").await?;
        Ok(rows.iter().filter_map(|row| Some((row["id"].as_str()?.to_owned(), row["lease_token"].as_u64()?))).collect())
    }

    /// Number of completed images of a job.
    async fn completed_images(&self, job: &str) -> Result<u64> {
        let sql = format!("SELECT count(*) AS finished FROM assets WHERE status = 'completed' AND job_id = '{job}'");
        self.query_rows(&sql).await?[0]["finished"].as_u64().context("count(*) is not a number")
    }

    /// Images for which a worker may have requests in flight: the unfinished images of all jobs that it has run.
    async fn unfinished_images(&self, slot: usize) -> Result<Vec<ImageKey>> {
        let log = self.slots[slot].worker.log();
        let lines = log.lines().filter(|line| line.contains("\"job attempt started\""));
        let jobs: BTreeSet<String> = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| Some(line["job.id"].as_str()?.to_owned()))
            .collect();
        let sql = "SELECT job_id, \"index\" FROM assets WHERE status = 'pending' OR (status = 'failed' AND may_pass)";
        let rows = self.query_rows(sql).await?;
        let missing = rows.iter().filter(|row| row["job_id"].as_str().is_some_and(|job| jobs.contains(job)));
        let keys = missing.filter_map(|row| {
            let order = self.jobs.iter().position(|order| row["job_id"] == order.job_id.as_str())?;
            Some((order, u32::try_from(row["index"].as_u64()?).ok()?))
        });
        Ok(keys.collect())
    }

    /// Counts an interruption for each image that was unfinished when a worker was interrupted.
    fn record_interruptions(&mut self, unfinished: Vec<ImageKey>) {
        for key in unfinished {
            *self.interruptions.entry(key).or_default() += 1;
        }
    }

    /// Queries the database, with retries because it may just have been restarted.
    async fn query_rows(&self, sql: &str) -> Result<Vec<Value>> {
        wait_until("the database", WAIT_TIMEOUT, async || self.env.query_rows(sql).await.ok()).await
    }

    /// Adds a violation for each worker that has exited by itself or panicked.
    fn check_workers(&mut self) {
        for (number, seat) in self.slots.iter_mut().enumerate() {
            if !seat.worker.is_running() {
                self.violations.push(format!("worker {number} exited by itself"));
            }
            if seat.worker.log().contains("panicked") {
                self.violations.push(format!("worker {number} panicked"));
            }
        }
    }

    /// Waits without disturbances until the queues are empty, then shuts the workers down.
    pub(super) async fn drain_and_stop(&mut self) -> Result<()> {
        let producer = self.connect_broker().await?;
        let mut since = None;
        let idle = async || {
            if !self.non_empty_queues(&producer).await.ok()?.is_empty() {
                since = None;
                return None;
            }
            // A single check could miss a command that is moved from one queue to another.
            let since = since.get_or_insert_with(std::time::Instant::now);
            (since.elapsed() > self.lease / 2).then_some(())
        };
        wait_until("empty queues", WAIT_TIMEOUT, idle).await?;
        self.check_workers();
        for seat in 0..self.slots.len() {
            self.stop_worker(seat).await?;
        }
        Ok(())
    }

    /// Queues with waiting messages, and how many; without the event queue and the dead letters.
    pub(super) async fn non_empty_queues(&self, producer: &BrokerClient) -> Result<Vec<(String, u32)>> {
        let mut waiting = Vec::new();
        for queue in self.env.queue_names().await? {
            let ready = if [EVENT_QUEUE, "assets.generate.dead"].contains(&queue.as_str()) {
                0
            } else {
                producer.ready_count(&queue).await?
            };
            if ready > 0 {
                waiting.push((queue, ready));
            }
        }
        Ok(waiting)
    }

    /// Returns the expected job with this id.
    pub(super) fn find_job(&self, job_id: &Value) -> Option<&ExpectedJob> {
        self.jobs.iter().find(|order| *job_id == order.job_id.as_str())
    }
}
