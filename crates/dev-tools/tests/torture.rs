//! A small run of `make chaos`, on services that other tests use at the same time: nothing is done to them.

use std::time::Duration;

use anyhow::Result;
use dev_services::services::Addresses;
use dev_tools::chaos::{self, Ground, Plan};

#[tokio::test]
async fn whatever_is_done_to_its_workers_each_job_ends_once_and_nothing_is_lost() -> Result<()> {
    // Another seed does other things in another order.
    let seed = dev_services::variable("TORTURE_SEED").map_or(Ok(20_261_124), |seed| seed.parse())?;
    // A lease that holds while other tests take the processor.
    let lease = Duration::from_secs(5);
    let plan = Plan { seed, jobs: 12, images: 5, workers: 2, every: (3, 6), lease, long_absence: Duration::ZERO };
    let report = Box::pin(chaos::play(&plan, &mut Ground::Shared(Addresses::given()?))).await?;
    assert!(report.violations.is_empty(), "{report}");
    Ok(())
}
