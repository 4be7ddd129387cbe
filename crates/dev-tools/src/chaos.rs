//! Many jobs, and everything that can be done to their workers, their broker and their database; then a look from the outside at what came of it.
//!
//! In reading order: `orders` says what is asked for and what must come of it, `trouble` what is done to the system, `stage` does it,
//! `findings` looks at messages, rows, files and the sandbox's ledger, `report` shows both.
//!
//! Everything that is done follows from a seed, and from how far the jobs are when it is done.

mod findings;
mod orders;
mod report;
mod stage;
mod trouble;

use std::time::Duration;

use anyhow::Result;
use dev_services::services::{Addresses, Postgres, RabbitMq};
use dev_services::wait::until;

use integration_tests::LIMIT;
pub use report::Report;
use stage::Stage;
pub use trouble::Trouble;

/// How much is done, and to how many.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Another seed does other things in another order.
    pub seed: u64,
    /// Commands.
    pub jobs: usize,
    /// The most images that a job asks for.
    pub images: usize,
    /// Workers side by side.
    pub workers: usize,
    /// So many more requests come to the sandbox between two disturbances: at least, and less than.
    pub every: (u32, u32),
    /// A worker that is not heard of for this long is lost.
    pub lease: Duration,
    /// How long broker and database are away the first time. The other times it is some seconds.
    pub long_absence: Duration,
}

/// Where it happens.
pub enum Ground {
    /// Services that others use too: their connections are cut, and nothing else is done to them.
    Shared(Addresses),
    /// Services of its own, which are stopped and started.
    Own(Box<(RabbitMq, Postgres)>),
}

impl Ground {
    fn addresses(&self) -> Addresses {
        match self {
            Self::Shared(addresses) => addresses.clone(),
            Self::Own(services) => Addresses::of(&services.0, &services.1),
        }
    }

    /// Stops what is its own.
    pub async fn stop(self) {
        if let Self::Own(services) = self {
            let (rabbitmq, postgres) = *services;
            tokio::join!(rabbitmq.stop(), postgres.stop());
        }
    }

    async fn broker_away(&mut self, away: Duration) -> Result<()> {
        match self {
            Self::Shared(_) => Ok(()),
            Self::Own(services) => services.0.be_away(away).await,
        }
    }

    async fn database_away(&mut self, away: Duration) -> Result<()> {
        match self {
            Self::Shared(_) => Ok(()),
            Self::Own(services) => services.1.be_away(away).await,
        }
    }
}

/// Plays a run to its end. What it finds wrong stands in the report.
///
/// # Errors
///
/// Where it could not even be begun.
pub async fn play(plan: &Plan, ground: &mut Ground) -> Result<Report> {
    let begun = std::time::Instant::now();
    let mut dice = fastrand::Rng::with_seed(plan.seed);
    let orders = orders::drawn(&mut dice, plan);
    let mut stage = Stage::set(plan, ground, orders).await?;
    let broken = disturbed(plan, &mut stage, &mut dice, ground).await;
    let broken = broken.and(stage.settle().await);
    let mut report = Report::new(plan, &stage);
    if let Err(broken) = broken.and(findings::look(&stage, &mut report).await) {
        // Jobs that never end are such a case.
        report.violated(format!("the run came to no end: {broken:#}"));
    }
    report.took = begun.elapsed();
    if !report.violations.is_empty() {
        report.folder = Some(stage.world.keep_folder());
    }
    Ok(report)
}

/// Does things to the system until every job has had its end.
async fn disturbed(plan: &Plan, stage: &mut Stage, dice: &mut fastrand::Rng, ground: &mut Ground) -> Result<()> {
    let mut troubles = Vec::new();
    let mut next = dice.u32(plan.every.0..plan.every.1);
    loop {
        let moved = async || {
            let ended = stage.feed().await.unwrap_or(false);
            (ended || stage.world.sandbox.ledger().requests >= next).then_some(ended)
        };
        if until("further requests, or the end of all jobs", LIMIT, moved).await? {
            return Ok(());
        }
        if troubles.is_empty() {
            troubles = trouble::all(ground);
            dice.shuffle(&mut troubles);
        }
        let trouble = troubles.pop().unwrap_or(Trouble::Kill);
        stage.make(trouble, dice, ground).await?;
        next = stage.world.sandbox.ledger().requests + dice.u32(plan.every.0..plan.every.1);
    }
}
