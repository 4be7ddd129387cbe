//! Many jobs, and everything that can be done to their workers at once: killed, frozen, cut off, told twice.
//!
//! What is done and when follows from a seed and from how far the jobs are; what must hold at the end is looked at from the outside.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Database, Events, LIMIT, Proxy, Worker, World, assert_files, command};
use serde_json::{Value, json};
use testbed::process::Signal;
use testbed::wait::until;

const JOBS: u64 = 12;
const WORKERS: usize = 2;
/// Something is done to the system whenever so many more pictures were asked for.
const EVERY: u32 = 4;
/// Requests that a worker has in flight at most: two jobs of two images each.
const IN_FLIGHT: u32 = 4;

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % count
    }
}

/// A job of one to five images, some of which go wrong.
fn job(dice: &mut Dice, number: u64) -> Value {
    let images = 1 + dice.below(5);
    let descriptions: Vec<String> = (0..images)
        .map(|image| {
            let fault = match dice.below(8) {
                0 => " [fault:status=503 x1]",
                1 => " [fault:blank x1]",
                2 => " [fault:drop x1]",
                _ => "",
            };
            format!("Picture {image} of job {number}{fault}")
        })
        .collect();
    let descriptions: Vec<&str> = descriptions.iter().map(String::as_str).collect();
    let project = i64::try_from(1 + number % 3).unwrap_or(1);
    command(project, &descriptions, &json!({"max_concurrent": 2, "cache": "never"}))
}

/// What was done, counted.
#[derive(Debug, Default)]
struct Done {
    kills: u32,
    freezes: u32,
    cuts: u32,
    stops: u32,
    repeats: u32,
}

struct Stage {
    world: World,
    broker: Proxy,
    workers: Vec<Worker>,
    orders: Vec<Value>,
    done: Done,
}

impl Stage {
    async fn set(seed: u64) -> Result<(Self, Dice)> {
        let mut world = World::with(Database::Postgres).await?;
        world.sandbox.set_sketch(true);
        world.sandbox.set_latency(Duration::from_millis(200));
        let url = url::Url::parse(&world.amqp_url)?;
        let upstream = format!("{}:{}", url.host_str().context("a host")?, url.port().unwrap_or(5672));
        let broker = Proxy::closed(upstream).await?;
        broker.open();
        let mut proxied = url.clone();
        proxied.set_host(Some("127.0.0.1"))?;
        proxied.set_port(Some(broker.address.port())).map_err(|()| anyhow::anyhow!("the URL takes no port"))?;
        world.set("AMQP_URL", proxied.to_string());
        world.set("WORKER_LEASE", "2s");
        world.set("WORKER_JOB_MAX_ATTEMPTS", "20");
        world.set("WORKER_SHUTDOWN_GRACE", "1s");
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            workers.push(world.worker().await?);
        }
        let mut dice = Dice(seed);
        let orders = (0..JOBS).map(|number| job(&mut dice, number)).collect();
        Ok((Self { world, broker, workers, orders, done: Done::default() }, dice))
    }

    /// Does something to the system.
    async fn disturb(&mut self, dice: &mut Dice) -> Result<()> {
        let victim = usize::try_from(dice.below(WORKERS as u64))?;
        match dice.below(5) {
            0 => {
                self.done.kills += 1;
                self.workers[victim].signal(Signal::KILL);
                self.workers[victim].ended().await?;
                self.workers[victim] = self.world.start_worker()?;
            }
            1 => {
                self.done.stops += 1;
                self.workers[victim].signal(Signal::TERM);
                self.workers[victim].ended().await?;
                self.workers[victim] = self.world.start_worker()?;
            }
            2 => {
                self.done.freezes += 1;
                // Frozen until the others have taken over, or have nothing to do.
                self.workers[victim].signal(Signal::STOP);
                let before = self.world.sandbox.ledger().requests;
                let others = async || (self.world.sandbox.ledger().requests > before + 1).then_some(());
                let _ = tokio::time::timeout(Duration::from_secs(4), until("others", LIMIT, others)).await;
                self.workers[victim].signal(Signal::CONT);
            }
            3 => {
                self.done.cuts += 1;
                self.broker.close();
                self.broker.open();
            }
            _ => {
                self.done.repeats += 1;
                let repeated = usize::try_from(dice.below(JOBS))?;
                self.world.producer().await?.publish(&self.orders[repeated]).await?;
            }
        }
        Ok(())
    }
}

/// The terminal events of all jobs, by job: ids and bodies, without repeats.
async fn terminal_events(events: &mut Events) -> Result<BTreeMap<String, BTreeSet<Vec<u8>>>> {
    let mut found: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
    while found.len() < usize::try_from(JOBS)? {
        let event = events.next().await?;
        if matches!(event.kind().as_str(), "assets.generation.completed" | "assets.generation.failed") {
            let job_id = event.json()["data"]["job_id"].as_str().context("an id")?.to_owned();
            found.entry(job_id).or_default().insert(event.body);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn whatever_is_done_to_its_workers_each_job_ends_once_and_nothing_is_lost() -> Result<()> {
    // Another seed does other things in another order.
    let seed = testbed::variable("TORTURE_SEED").and_then(|seed| seed.parse().ok()).unwrap_or(20_261_124);
    let (mut stage, mut dice) = Stage::set(seed).await?;
    let producer = stage.world.producer().await?;
    let mut events = producer.events().await?;
    for order in &stage.orders {
        producer.publish(order).await?;
    }
    let found = {
        let disturbed = async {
            let mut next = EVERY;
            loop {
                let sandbox = &stage.world.sandbox;
                let far_enough = async || (sandbox.ledger().requests >= next).then_some(());
                until("the next disturbance", LIMIT, far_enough).await?;
                stage.disturb(&mut dice).await?;
                next = stage.world.sandbox.ledger().requests + EVERY;
            }
            #[expect(unreachable_code, reason = "it names the type")]
            Ok::<_, anyhow::Error>(())
        };
        tokio::select! {
            found = terminal_events(&mut events) => found?,
            disturbed = disturbed => { disturbed?; unreachable!("it goes on until all jobs have ended") }
        }
    };
    // Left alone, the workers settle what is still delivered.
    for worker in &mut stage.workers {
        worker.signal(Signal::CONT);
        // The last disturbance may have been cut off half way.
        if worker.ready().await.is_err() {
            *worker = stage.world.worker().await?;
        }
    }
    let empty = async || (producer.ready("assets.generate").await.ok()? == 0).then_some(());
    until("an empty queue", LIMIT, empty).await?;

    let mut images = 0;
    let mut extra = 0;
    for order in &stage.orders {
        let job_id = order["job_id"].as_str().context("an id")?;
        let bodies = found.get(job_id).with_context(|| format!("job {job_id} has no terminal event"))?;
        ensure!(bodies.len() == 1, "job {job_id} has {} different terminal events", bodies.len());
        let event: Value = serde_json::from_slice(bodies.first().context("a body")?)?;
        let data = &event["data"];
        ensure!(event["type"] == "assets.generation.completed", "job {job_id} has failed: {data}");
        let descriptions = order["image_descriptions"].as_array().context("a list")?;
        let succeeded = data["succeeded"].as_u64().context("a count")?;
        images += u32::try_from(succeeded)?;
        extra += u32::try_from(descriptions.iter().filter(|text| text.to_string().contains("fault")).count())?;
        let made: Vec<u32> = data["assets"]
            .as_array()
            .context("a list")?
            .iter()
            .filter_map(|asset| asset["index"].as_u64()?.try_into().ok())
            .collect();
        assert_files(&stage.world, data, &made)?;
    }
    let rows = stage.world.rows("SELECT status, file_path, sha256 FROM assets").await?;
    let completed: Vec<_> = rows.iter().filter(|row| row["status"] == "completed").collect();
    assert_eq!(completed.len(), images as usize, "rows and events agree");
    let jobs = stage.world.rows("SELECT status FROM jobs").await?;
    assert!(jobs.len() == usize::try_from(JOBS)? && jobs.iter().all(|job| job["status"] == "completed"), "{jobs:?}");
    let paths: BTreeSet<_> = completed.iter().map(|row| row["file_path"].to_string()).collect();
    assert_eq!(paths.len(), completed.len(), "no file belongs to two images");
    let mut files = BTreeSet::new();
    for project in 1..=3 {
        let folder = format!("projects/{project}/assets");
        for file in std::fs::read_dir(stage.world.file(&folder))? {
            files.insert(Value::from(format!("{folder}/{}", file?.file_name().display())).to_string());
        }
    }
    let strays: Vec<_> = files.difference(&paths).collect();
    assert!(strays.is_empty(), "nothing else lies there: {strays:?}");
    let ledger = stage.world.sandbox.ledger();
    eprintln!("seed {seed}: {images} pictures, {} paid for, {:?}", ledger.charged, stage.done);
    let lives_cut_short = stage.done.kills + stage.done.freezes + stage.done.stops + 2 * stage.done.cuts;
    let allowed = images + extra + IN_FLIGHT * lives_cut_short;
    assert!(
        ledger.charged <= allowed,
        "{} pictures were paid for, {allowed} explained: {:?}",
        ledger.charged,
        stage.done
    );
    assert_eq!(producer.ready("assets.generate.dead").await?, 0);
    Ok(())
}
