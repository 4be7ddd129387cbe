//! Chaos test: runs many jobs, disturbs their workers, broker and database, and then verifies the results from the
//! outside.
//!
//! In reading order: `expected_jobs` generates the jobs and their expected results, `disturbance` lists the
//! disturbances, `cluster` applies them, `verification` checks messages, rows, files and the sandbox's ledger, `report`
//! shows disturbances and results.
//!
//! The seed determines the jobs and the order of the disturbances; the moment of a disturbance depends on how many
//! requests the sandbox has received.

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

/// Parameters of a chaos run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Determines the jobs and the order of the disturbances.
    pub seed: u64,
    /// Number of jobs.
    pub jobs: usize,
    /// Maximum number of images per job.
    pub max_images: usize,
    /// Number of workers.
    pub workers: usize,
    /// Requests to the sandbox between two disturbances: lower bound, and exclusive upper bound.
    pub requests_between_disturbances: (u32, u32),
    /// Lease of the workers: a job can be taken over if its lease was not renewed for this long.
    pub lease: Duration,
    /// Duration of the first outage of broker and database. Later outages last less than five seconds.
    pub first_outage: Duration,
}

/// Broker and database of a chaos run.
pub enum Services {
    /// Services that other tests use too: only the workers' connections are closed.
    Shared(ServiceUrls),
    /// Services of this run only, which are also stopped and started again.
    Owned(Box<(RabbitMq, Postgres)>),
}

impl Services {
    fn urls(&self) -> ServiceUrls {
        match self {
            Self::Shared(addresses) => addresses.clone(),
            Self::Owned(services) => ServiceUrls::from_services(&services.0, &services.1),
        }
    }

    /// Stops the services if they are not shared.
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

    /// Raises a memory alarm for this long.
    async fn block_publishing(&self, duration: Duration) -> Result<()> {
        let Self::Owned(services) = self else { return Ok(()) };
        services.0.control(&["set_vm_memory_high_watermark", "0"]).await?;
        tokio::time::sleep(duration).await;
        services.0.control(&["set_vm_memory_high_watermark", "0.6"]).await.map(drop)
    }

    async fn restart_database(&mut self, away: Duration) -> Result<()> {
        match self {
            Self::Shared(_) => Ok(()),
            Self::Owned(services) => services.1.restart_after(away).await,
        }
    }
}

/// Runs the jobs with disturbances and verifies the results. Violations are in the report.
///
/// # Errors
///
/// If the run cannot be started. Later errors are violations in the report.
pub async fn run(plan: &Plan, services: &mut Services) -> Result<Report> {
    let begun = std::time::Instant::now();
    let mut rng = fastrand::Rng::with_seed(plan.seed);
    let expected_jobs = expected_jobs::generate(&mut rng, plan);
    let mut cluster = Cluster::start(plan, services, expected_jobs).await?;
    let result = disturb_until_done(plan, &mut cluster, &mut rng, services).await;
    let result = result.and(cluster.drain_and_stop().await);
    let mut report = Report::new(plan, &cluster);
    if let Err(result) = result.and(verification::verify(&cluster, &mut report).await) {
        // For example, a job never ends.
        report.add_violation(format!("the run did not finish: {result:#}"));
    }
    report.elapsed = begun.elapsed();
    if !report.violations.is_empty() {
        report.folder = Some(cluster.env.keep_folder());
    }
    Ok(report)
}

/// Applies disturbances until every job has ended.
async fn disturb_until_done(
    plan: &Plan,
    cluster: &mut Cluster,
    rng: &mut fastrand::Rng,
    services: &mut Services,
) -> Result<()> {
    let mut disturbances = Vec::new();
    let mut next = rng.u32(plan.requests_between_disturbances.0..plan.requests_between_disturbances.1);
    loop {
        let progressed = async || {
            let ended = cluster.publish_next_jobs().await.unwrap_or(false);
            (ended || cluster.env.sandbox.ledger().requests >= next).then_some(ended)
        };
        if wait_until("further requests or the end of all jobs", WAIT_TIMEOUT, progressed).await? {
            return Ok(());
        }
        if disturbances.is_empty() {
            disturbances = disturbance::available(services);
            rng.shuffle(&mut disturbances);
        }
        let disturbance = disturbances.pop().unwrap_or(Disturbance::Kill);
        cluster.apply(disturbance, rng, services).await?;
        next = cluster.env.sandbox.ledger().requests
            + rng.u32(plan.requests_between_disturbances.0..plan.requests_between_disturbances.1);
    }
}
