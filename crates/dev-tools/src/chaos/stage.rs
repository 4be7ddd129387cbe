//! The workers with their broker and their database, and what is done to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use dev_services::process::Signal;
use dev_services::wait::until;
use fastrand::Rng;
use integration_tests::{Database, LIMIT, Producer, Proxy, Worker, World};
use serde_json::Value;

use super::orders::{Order, TIMEOUT, conflicting};
use super::{Ground, Plan, Trouble};

/// Where events are kept until the end.
pub(super) const EVENTS: &str = "chaos.events";
/// From SIGTERM until what is in flight is dropped.
const GRACE: Duration = Duration::from_secs(5);
/// Jobs that are open at once for each worker: two that it works on, and one that waits.
const OPEN_FOR_EACH: usize = 3;
/// Where a worker can be killed.
const POINTS: [&str; 7] = [
    "before_parse",
    "before_claim",
    "after_claim",
    "before_file",
    "before_row",
    "before_event",
    "after_event",
];

/// A worker that has something to do comes to its point within this time.
const POINT_LIMIT: Duration = Duration::from_secs(20);

/// One image of one job.
pub(super) type Key = (usize, u32);

/// A worker with its own ways to broker and database.
struct Seat {
    broker: Proxy,
    amqp_url: String,
    database: Proxy,
    database_url: String,
    worker: Worker,
}

pub(super) struct Stage {
    pub(super) world: World,
    pub(super) orders: Vec<Order>,
    pub(super) done: BTreeMap<Trouble, u32>,
    /// How often a worker's life was cut short while an image was underway: its request may have been sent again.
    pub(super) lives_cut: BTreeMap<Key, u32>,
    /// Messages that are no command of a new job: body, and the reason that they must lie in the dead letters with.
    pub(super) rejected: Vec<(Vec<u8>, &'static str)>,
    /// What was found wrong on the way.
    pub(super) violations: Vec<String>,
    seats: Vec<Seat>,
    /// Commands that are published; the others follow as jobs end.
    published: usize,
    /// Where workers are yet to be killed.
    points: Vec<&'static str>,
    long_absence: Duration,
    lease: Duration,
}

impl Stage {
    pub(super) async fn set(plan: &Plan, ground: &Ground, orders: Vec<Order>) -> Result<Self> {
        let mut world = World::on(&ground.addresses(), Database::Postgres).await?;
        world.be_quiet();
        world.sandbox.set_sketch(true);
        world.sandbox.set_latency(Duration::from_millis(200));
        world.set("WORKER_LEASE", format!("{}s", plan.lease.as_secs()));
        world.set("WORKER_JOB_MAX_ATTEMPTS", "20");
        world.set("WORKER_SHUTDOWN_GRACE", format!("{}s", GRACE.as_secs()));
        world.set("STABILITY_TIMEOUT", TIMEOUT);
        let mut seats = Vec::new();
        for _ in 0..plan.workers {
            let (broker, amqp_url) = Proxy::before(&world.amqp_url, 5672).await?;
            let (database, database_url) = Proxy::before(world.database_url(), 5432).await?;
            world.set("AMQP_URL", amqp_url.clone());
            world.set("DATABASE_URL", database_url.clone());
            let worker = world.worker().await?;
            seats.push(Seat { broker, amqp_url, database, database_url, worker });
        }
        world.producer().await?.keep_events(EVENTS).await?;
        let rejected = orders
            .iter()
            .filter(|order| order.is_refused())
            .map(|order| (order.body.to_string().into_bytes(), "invalid_request"))
            .collect();
        let (done, lives_cut) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            world,
            orders,
            done,
            lives_cut,
            rejected,
            seats,
            published: 0,
            points: Vec::new(),
            long_absence: plan.long_absence,
            lease: plan.lease,
            violations: Vec::new(),
        })
    }

    /// Publishes as many commands as keep every worker busy, and some that wait. Says whether every job has had its end.
    pub(super) async fn feed(&mut self) -> Result<bool> {
        let sql = "SELECT count(*) AS ended FROM jobs WHERE status IN ('completed', 'failed')";
        let ended = self.world.rows(sql).await?[0]["ended"].as_u64().context("a number")?;
        let ended = usize::try_from(ended)?;
        let wanted = (ended + OPEN_FOR_EACH * self.seats.len()).min(self.orders.len());
        if self.published < wanted {
            let producer = self.producer().await?;
            while self.published < wanted {
                producer.publish(&self.orders[self.published].body).await?;
                self.published += 1;
            }
        }
        Ok(ended == self.orders.len())
    }

    /// Does something to the system, and returns when it is over.
    pub(super) async fn make(&mut self, trouble: Trouble, dice: &mut Rng, ground: &mut Ground) -> Result<()> {
        let victim = dice.usize(..self.seats.len());
        let chosen = dice.usize(..self.published.max(1));
        let short = Duration::from_secs(dice.u64(..5));
        let absence = if self.done.contains_key(&trouble) { short } else { self.long_absence };
        self.look_at_workers();
        match trouble {
            Trouble::Kill => self.kill(victim).await?,
            Trouble::KillAtPoint => {
                if self.points.is_empty() {
                    self.points = POINTS.to_vec();
                    dice.shuffle(&mut self.points);
                }
                let point = self.points.pop().unwrap_or(POINTS[0]);
                if !self.kill_at(victim, point).await? {
                    return Ok(());
                }
            }
            Trouble::Terminate => {
                self.stop_in_order(victim).await?;
                self.replace(victim, "")?;
            }
            Trouble::Freeze => self.freeze(victim, false).await?,
            Trouble::FreezeAndCut => self.freeze(victim, true).await?,
            Trouble::CutBroker => self.seats[victim].broker.cut(),
            Trouble::CutDatabase => self.seats[victim].database.cut(),
            Trouble::BrokerAway => ground.broker_away(absence).await?,
            Trouble::DatabaseAway => ground.database_away(absence).await?,
            Trouble::Repeat => self.producer().await?.publish(&self.orders[chosen].body).await?,
            Trouble::Rubbish => {
                let body = format!("no command, {}", dice.u32(..)).into_bytes();
                self.producer().await?.publish_bytes(&body, None).await?;
                self.rejected.push((body, "invalid_request"));
            }
            Trouble::Conflict => {
                let order = &self.orders[chosen];
                // Only where its job is known: of two commands with one id, the first one counts.
                let known = format!("SELECT id FROM jobs WHERE id = '{}'", order.job_id);
                if self.rows(&known).await?.is_empty() {
                    return Ok(());
                }
                let body = conflicting(order);
                self.producer().await?.publish(&body).await?;
                self.rejected.push((body.to_string().into_bytes(), "job_id_conflict"));
            }
        }
        *self.done.entry(trouble).or_default() += 1;
        Ok(())
    }

    /// Connects to the broker, which may have come back a moment ago.
    async fn producer(&self) -> Result<Producer> {
        until("the broker", LIMIT, async || self.world.producer().await.ok()).await
    }

    async fn kill(&mut self, victim: usize) -> Result<()> {
        // Frozen first, so that nothing is begun that is not seen.
        self.seats[victim].worker.signal(Signal::STOP);
        let underway = self.underway(victim).await?;
        self.note_lives_cut(underway);
        self.seats[victim].worker.signal(Signal::KILL);
        self.seats[victim].worker.ended().await?;
        self.replace(victim, "")
    }

    /// Lets another worker take a seat.
    fn replace(&mut self, seat: usize, point: &str) -> Result<()> {
        let taken = &mut self.seats[seat];
        self.world.set("AMQP_URL", taken.amqp_url.clone());
        self.world.set("DATABASE_URL", taken.database_url.clone());
        self.world.set("ASSET_WORKER_PAUSE_AT", point);
        taken.worker = self.world.start_worker()?;
        Ok(())
    }

    /// Whether a worker came to this point, and was killed there.
    async fn kill_at(&mut self, victim: usize, point: &str) -> Result<bool> {
        self.stop_in_order(victim).await?;
        self.replace(victim, point)?;
        let paused = format!("\"point\":\"{point}\"");
        let worker = &self.seats[victim].worker;
        let there = async || worker.log().contains(&paused).then_some(());
        // Where there is nothing left to do it never comes there.
        let came = until("the point", POINT_LIMIT, there).await.is_ok();
        self.kill(victim).await?;
        Ok(came)
    }

    async fn stop_in_order(&mut self, victim: usize) -> Result<()> {
        let underway = self.underway(victim).await?;
        let begun = std::time::Instant::now();
        self.seats[victim].worker.signal(Signal::TERM);
        let status = self.seats[victim].worker.ended().await?;
        if !status.success() {
            self.violations.push(format!("a worker that was told to stop ended with {status}"));
        }
        // Only what takes longer than the grace is dropped.
        if begun.elapsed() >= GRACE {
            self.note_lives_cut(underway);
        }
        Ok(())
    }

    /// Freezes a worker until another one has taken over one of the jobs that were worked on, and has finished an image of it.
    async fn freeze(&mut self, victim: usize, cut: bool) -> Result<()> {
        self.seats[victim].worker.signal(Signal::STOP);
        let (underway, held) = (self.underway(victim).await?, self.held().await?);
        self.note_lives_cut(underway);
        if cut {
            self.seats[victim].broker.cut();
            self.seats[victim].database.cut();
        } else {
            // The broker takes it to be well, and gives its commands to nobody else: but producers repeat themselves.
            let producer = self.producer().await?;
            for order in self.orders.iter().filter(|order| held.contains_key(&order.job_id)) {
                producer.publish(&order.body).await?;
            }
        }
        let taken_over = async || {
            let now = self.held().await.ok()?;
            let (job, _) = now.into_iter().find(|(job, claims)| held.get(job).is_some_and(|known| claims > known))?;
            let finished = self.finished(&job).await.ok()?;
            Some((job, finished))
        };
        // Where it held none, or none has an image left, nobody takes over.
        if let Ok((job, finished)) = until("another worker", self.lease * 2, taken_over).await {
            let went_on = async || {
                let ended = !self.held().await.ok()?.contains_key(&job);
                (ended || self.finished(&job).await.ok()? > finished).then_some(())
            };
            let _ = until("one image more", self.lease * 2, went_on).await;
        }
        self.seats[victim].worker.signal(Signal::CONT);
        Ok(())
    }

    /// The jobs that are worked on, each with the number of its claim.
    async fn held(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.rows("SELECT id, lease_token FROM jobs WHERE status = 'running'").await?;
        Ok(rows.iter().filter_map(|row| Some((row["id"].as_str()?.to_owned(), row["lease_token"].as_u64()?))).collect())
    }

    /// How many images of a job are there.
    async fn finished(&self, job: &str) -> Result<u64> {
        let sql = format!("SELECT count(*) AS finished FROM assets WHERE status = 'completed' AND job_id = '{job}'");
        self.rows(&sql).await?[0]["finished"].as_u64().context("a number")
    }

    /// The images that a worker may have requests in flight for: those that are to be made yet of all jobs that it has worked on.
    async fn underway(&self, victim: usize) -> Result<Vec<Key>> {
        let log = self.seats[victim].worker.log();
        let lines = log.lines().filter(|line| line.contains("\"working on a job\""));
        let jobs: BTreeSet<String> = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| Some(line["job.id"].as_str()?.to_owned()))
            .collect();
        let sql = "SELECT job_id, \"index\" FROM assets WHERE status = 'pending' OR (status = 'failed' AND may_pass)";
        let rows = self.rows(sql).await?;
        let missing = rows.iter().filter(|row| row["job_id"].as_str().is_some_and(|job| jobs.contains(job)));
        let keys = missing.filter_map(|row| {
            let order = self.orders.iter().position(|order| row["job_id"] == order.job_id.as_str())?;
            Some((order, u32::try_from(row["index"].as_u64()?).ok()?))
        });
        Ok(keys.collect())
    }

    /// Notes the images that were underway before a worker's end.
    fn note_lives_cut(&mut self, underway: Vec<Key>) {
        for key in underway {
            *self.lives_cut.entry(key).or_default() += 1;
        }
    }

    /// Rows of the database, which may have come back a moment ago.
    async fn rows(&self, sql: &str) -> Result<Vec<Value>> {
        until("the database", LIMIT, async || self.world.rows(sql).await.ok()).await
    }

    /// No worker may end by itself, nor any of its jobs in a panic.
    fn look_at_workers(&mut self) {
        for (number, seat) in self.seats.iter_mut().enumerate() {
            if !seat.worker.is_running() {
                self.violations.push(format!("worker {number} has ended by itself"));
            }
            if seat.worker.log().contains("panicked") {
                self.violations.push(format!("worker {number} has panicked"));
            }
        }
    }

    /// Leaves the workers alone until nothing waits any more, then tells them to stop.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let producer = self.producer().await?;
        let mut since = None;
        let idle = async || {
            if !self.waiting(&producer).await.ok()?.is_empty() {
                since = None;
                return None;
            }
            // One look could miss a command on its way from one queue to another.
            let since = since.get_or_insert_with(std::time::Instant::now);
            (since.elapsed() > self.lease / 2).then_some(())
        };
        until("empty queues", LIMIT, idle).await?;
        self.look_at_workers();
        for seat in 0..self.seats.len() {
            self.stop_in_order(seat).await?;
        }
        Ok(())
    }

    /// The queues on which something lies that somebody has yet to deal with, and how much.
    pub(super) async fn waiting(&self, producer: &Producer) -> Result<Vec<(String, u32)>> {
        let mut waiting = Vec::new();
        for queue in self.world.queues().await? {
            let ready = if [EVENTS, "assets.generate.dead"].contains(&queue.as_str()) {
                0
            } else {
                producer.ready(&queue).await?
            };
            if ready > 0 {
                waiting.push((queue, ready));
            }
        }
        Ok(waiting)
    }

    /// What a command's body says, as the world knows it.
    pub(super) fn order(&self, job_id: &Value) -> Option<&Order> {
        self.orders.iter().find(|order| *job_id == order.job_id.as_str())
    }
}
