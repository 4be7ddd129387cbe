//! The workers with their broker and their database, and what is done to them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::Value;
use testbed::process::Signal;
use testbed::wait::until;

use super::orders::{Order, TIMEOUT, conflicting};
use super::{Ground, Plan, Trouble};
use crate::{Database, LIMIT, Producer, Proxy, Worker, World};

/// Where events are kept until the end.
pub(super) const EVENTS: &str = "chaos.events";
/// A lease of a worker that is not heard of.
const LEASE: Duration = Duration::from_secs(3);
/// From SIGTERM until what is in flight is dropped.
const GRACE: Duration = Duration::from_secs(5);
/// Where a worker can be killed.
const POINTS: [&str; 7] = [
    "before reading",
    "before the claim",
    "after the claim",
    "before the file",
    "before the row",
    "before the event",
    "after the event",
];

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
    seats: Vec<Seat>,
    long_absence: Duration,
}

impl Stage {
    pub(super) async fn set(plan: &Plan, ground: &Ground, orders: Vec<Order>) -> Result<Self> {
        let mut world = World::on(&ground.addresses(), Database::Postgres).await?;
        world.be_quiet();
        world.sandbox.set_sketch(true);
        world.sandbox.set_latency(Duration::from_millis(200));
        world.set("WORKER_LEASE", format!("{}s", LEASE.as_secs()));
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
        Ok(Self { world, orders, done, lives_cut, rejected, seats, long_absence: plan.long_absence })
    }

    pub(super) async fn publish_all(&self) -> Result<()> {
        let producer = self.world.producer().await?;
        for order in &self.orders {
            producer.publish(&order.body).await?;
        }
        Ok(())
    }

    /// Whether every job has had its end.
    pub(super) async fn all_ended(&self) -> Result<bool> {
        let sql = "SELECT count(*) AS ended FROM jobs WHERE status IN ('completed', 'failed')";
        let rows = self.world.rows(sql).await?;
        Ok(rows[0]["ended"].as_u64() == Some(self.orders.len() as u64))
    }

    /// Does something to the system, and returns when it is over.
    pub(super) async fn make(&mut self, trouble: Trouble, dice: &mut Rng, ground: &mut Ground) -> Result<()> {
        let victim = dice.usize(..self.seats.len());
        let chosen = dice.usize(..self.orders.len());
        let first = !self.done.contains_key(&trouble);
        let absence = if first { self.long_absence } else { Duration::from_secs(dice.u64(..5)) };
        match trouble {
            Trouble::Kill => self.kill(victim).await?,
            Trouble::KillAtPoint => {
                let point = POINTS[dice.usize(..POINTS.len())];
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
                if self.world.rows(&known).await?.is_empty() {
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
        let before = self.underway().await?;
        self.seats[victim].worker.signal(Signal::KILL);
        self.seats[victim].worker.ended().await?;
        self.note_lives_cut(before).await?;
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
        let came = until("the point", LEASE * 3, there).await.is_ok();
        self.kill(victim).await?;
        Ok(came)
    }

    async fn stop_in_order(&mut self, victim: usize) -> Result<()> {
        let before = self.underway().await?;
        let begun = std::time::Instant::now();
        self.seats[victim].worker.signal(Signal::TERM);
        self.seats[victim].worker.ended().await?;
        // Only what takes longer than the grace is dropped.
        if begun.elapsed() >= GRACE {
            self.note_lives_cut(before).await?;
        }
        Ok(())
    }

    async fn freeze(&mut self, victim: usize, cut: bool) -> Result<()> {
        let before = self.underway().await?;
        let claims = self.claims().await?;
        self.seats[victim].worker.signal(Signal::STOP);
        if cut {
            self.seats[victim].broker.cut();
            self.seats[victim].database.cut();
        }
        // Until somebody has taken a job over, or there is none to take over.
        let taken_over = async || (self.claims().await.ok()? > claims).then_some(());
        let _ = until("another worker", LEASE * 2, taken_over).await;
        self.seats[victim].worker.signal(Signal::CONT);
        self.note_lives_cut(before).await
    }

    /// How often jobs were claimed.
    async fn claims(&self) -> Result<u64> {
        let rows = self.world.rows("SELECT CAST(coalesce(sum(lease_token), 0) AS BIGINT) AS claims FROM jobs").await?;
        rows[0]["claims"].as_u64().context("a number")
    }

    /// The images that were asked for and are not there.
    async fn underway(&self) -> Result<Vec<Key>> {
        let ledger = self.world.sandbox.ledger();
        let rows = self.world.rows("SELECT job_id, \"index\" FROM assets WHERE status <> 'completed'").await?;
        let missing = rows.iter().filter_map(|row| {
            let order = self.orders.iter().position(|order| row["job_id"] == order.job_id.as_str())?;
            Some((order, u32::try_from(row["index"].as_u64()?).ok()?))
        });
        Ok(missing.filter(|key| self.image(*key).is_some_and(|mark| ledger.asked(mark).requests > 0)).collect())
    }

    fn image(&self, (order, index): Key) -> Option<&str> {
        let image = self.orders[order].images.get(usize::try_from(index).ok()?.checked_sub(1)?)?;
        Some(&image.mark)
    }

    /// Notes the images that were underway before a worker's end, or are now.
    async fn note_lives_cut(&mut self, before: Vec<Key>) -> Result<()> {
        let mut underway = self.underway().await?;
        underway.extend(before);
        underway.sort_unstable();
        underway.dedup();
        for key in underway {
            *self.lives_cut.entry(key).or_default() += 1;
        }
        Ok(())
    }

    /// Leaves the workers alone until nothing waits any more, then tells them to stop.
    pub(super) async fn settle(&mut self) -> Result<()> {
        let producer = self.producer().await?;
        let idle = async || (self.waiting(&producer).await.ok()?.is_empty()).then_some(());
        until("empty queues", LIMIT, idle).await?;
        for seat in &mut self.seats {
            seat.worker.signal(Signal::TERM);
            seat.worker.ended().await?;
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
