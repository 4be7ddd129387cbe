//! A short chaos run with services that other tests use at the same time: the services themselves are not disturbed.

use std::time::Duration;

use anyhow::Result;
use dev_services::services::ServiceUrls;
use dev_tools::chaos::{self, Plan, Services};

#[tokio::test]
async fn every_job_ends_once_despite_disturbances() -> Result<()> {
    // The seed determines the jobs and the order of the disturbances.
    let seed = dev_services::env_var("CHAOS_SEED").map_or(Ok(20_261_124), |seed| seed.parse())?;
    // Long enough not to expire while other tests use the CPU.
    let lease = Duration::from_secs(5);
    let plan = Plan {
        seed,
        jobs: 12,
        max_images: 5,
        workers: 2,
        requests_between_disturbances: (3, 6),
        lease,
        first_outage: Duration::ZERO,
    };
    let report = Box::pin(chaos::run(&plan, &mut Services::Shared(ServiceUrls::from_env()?))).await?;
    assert!(report.violations.is_empty(), "{report}");
    Ok(())
}
