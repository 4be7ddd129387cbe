//! Many jobs, and everything that can be done to their workers, their broker and their database; then a look from the outside at what came of it.
//!
//! In reading order: `orders` says what is asked for and what must come of it, `trouble` what is done to the system, `stage` does it,
//! `findings` looks at messages, rows, files and the sandbox's ledger, `report` shows both.
//!
//! Everything that is done follows from a seed, and from how far the jobs are when it is done.

mod cluster;
mod disturbance;
mod expected_jobs;
mod report;
mod verification;

use std::time::Duration;

use anyhow::Result;
use dev_services::services::{Postgres, RabbitMq, ServiceUrls};
use dev_services::wait::wait_until;

use cluster::Cluster;
pub use disturbance::Disturbance;
use integration_tests::WAIT_TIMEOUT;
pub use report::Report;

/// How much is done, and to how many.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Another seed does other things in another order.
    pub seed: u64,
    /// Commands.
    pub jobs: usize,
    /// The most images that a job asks for.
    pub max_images: usize,
    /// Workers side by side.
    pub workers: usize,
    /// So many more requests come to the sandbox between two disturbances: at least, and less than.
    pub requests_between_disturbances: (u32, u32),
    /// A worker that is not heard of for this long is lost.
    pub lease: Duration,
    /// How long broker and database are away the first time. The other times it is some seconds.
    pub first_outage: Duration,
}

/// Where it happens.
pub enum Services {
    /// Services that others use too: their connections are cut, and nothing else is done to them.
    Shared(ServiceUrls),
    /// Services of its own, which are stopped and started.
    Owned(Box<(RabbitMq, Postgres)>),
}

impl Services {
    fn urls(&self) -> ServiceUrls {
        match self {
            Self::Shared(addresses) => addresses.clone(),
            Self::Owned(services) => ServiceUrls::from_services(&services.0, &services.1),
        }
    }

    /// Stops what is its own.
    pub async fn stop(self) {
        if let Self::Owned(services) = self {
            let (rabbitmq, postgres) = *services;
            tokio::join!(rabbitmq.stop(), postgres.stop());
        }
    }

    async fn restart_broker(&mut self, away: Duration) -> Result<()> {
        match self {
            Self::Shared(_) => Ok(()),
            Self::Owned(services) => services.0.restart_after(away).await,
        }
    }

    async fn restart_database(&mut self, away: Duration) -> Result<()> {
        match self {
            Self::Shared(_) => Ok(()),
            Self::Owned(services) => services.1.restart_after(away).await,
        }
    }
}

/// Plays a run to its end. What it finds wrong stands in the report.
///
/// # Errors
///
/// Where it could not even be begun.
pub async fn run(plan: &Plan, ground: &mut Services) -> Result<Report> {
    let begun = std::time::Instant::now();
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let orders = expected_jobs::generate(&mut rng, plan);
    let mut stage = Cluster::start(plan, ground, orders).await?;
    let result = disturb_until_done(plan, &mut stage, &mut rng, ground).await;
    let result = result.and(stage.drain_and_stop().await);
    let mut report = Report::new(plan, &stage);
    if let Err(result) = result.and(verification::verify(&stage, &mut report).await) {
        // Jobs that never end are such a case.
        report.add_violation(format!("the run came to no end: {result:#}"));
    }
    report.elapsed = begun.elapsed();
    if !report.violations.is_empty() {
        report.folder = Some(stage.env.keep_folder());
    }
    Ok(report)
}

/// Does things to the system until every job has had its end.
async fn disturb_until_done(
    plan: &Plan,
    stage: &mut Cluster,
    dice: &mut fastrand::Rng,
    ground: &mut Services,
) -> Result<()> {
    let mut troubles = Vec::new();
    let mut next = dice.u32(plan.requests_between_disturbances.0..plan.requests_between_disturbances.1);
    loop {
        let progressed = async || {
            let ended = stage.publish_next_jobs().await.unwrap_or(false);
            (ended || stage.env.sandbox.ledger().requests >= next).then_some(ended)
        };
        if wait_until("further requests, or the end of all jobs", WAIT_TIMEOUT, progressed).await? {
            return Ok(());
        }
        if troubles.is_empty() {
            troubles = disturbance::available(ground);
            dice.shuffle(&mut troubles);
        }
        let trouble = troubles.pop().unwrap_or(Disturbance::Kill);
        stage.apply(trouble, dice, ground).await?;
        next = stage.env.sandbox.ledger().requests
            + dice.u32(plan.requests_between_disturbances.0..plan.requests_between_disturbances.1);
    }
}
