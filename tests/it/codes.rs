//! Every failure code of the contract, produced for real.

use std::collections::HashSet;

use anyhow::Result;
use domain::failure::{ImageFailureCode, JobFailureCode};
use integration_tests::{World, codes, command};
use serde_json::{Value, json};

/// The job's code and its images' codes, without the rate's own code.
struct Case {
    descriptions: &'static [&'static str],
    config: Value,
    settings: &'static [(&'static str, &'static str)],
    job: &'static str,
    images: &'static [&'static str],
}

impl Case {
    fn new(description: &'static [&'static str], job: &'static str, images: &'static [&'static str]) -> Self {
        Self { descriptions: description, config: json!({}), settings: &[], job, images }
    }

    async fn check(&self) -> Result<()> {
        let mut world = World::new().await?;
        world.set("WORKER_JOB_RETRY_DELAYS", "10ms");
        for (name, value) in self.settings {
            world.set(name, *value);
        }
        if self.images.contains(&"storage") {
            // A file where a folder is needed.
            std::fs::create_dir_all(world.file(""))?;
            std::fs::write(world.file("projects"), "in the way")?;
        }
        let data = world.generate(&command(1, self.descriptions, &self.config)).await?.data_of("failed")?;
        assert_eq!(data["error"]["code"], self.job, "{data}");
        assert_eq!(codes(&data), self.images, "{data}");
        let rows = world.rows(r#"SELECT error_code FROM assets ORDER BY "index""#).await?;
        let stored: Vec<_> = rows.iter().filter_map(|row| row["error_code"].as_str()).collect();
        assert_eq!(stored, self.images);
        Ok(())
    }
}

fn of_images() -> Vec<Case> {
    let low = "success_rate_too_low";
    let late = &[("STABILITY_TIMEOUT", "1s"), ("STABILITY_RETRY_DELAYS", "none"), ("WORKER_JOB_MAX_ATTEMPTS", "1")];
    let one_by_one = json!({"max_concurrent": 1});
    vec![
        Case::new(&["A gory battle"], low, &["content_policy"]),
        Case::new(&["A fox [fault:filtered]"], low, &["content_policy"]),
        Case::new(&["A fox [fault:blank]"], low, &["invalid_image"]),
        Case::new(&["A fox [fault:status=429]"], low, &["rate_limited"]),
        Case::new(&["A fox [fault:status=503]"], low, &["provider_unavailable"]),
        Case { settings: late, ..Case::new(&["A fox [fault:slow=60000]"], low, &["timeout"]) },
        Case::new(&["一隻狐狸"], low, &["translation_unavailable"]),
        Case::new(&["A fox [fault:status=422]"], low, &["rejected_request"]),
        Case::new(&["A fox"], "attempts_exhausted", &["storage"]),
        Case { config: one_by_one, ..Case::new(&["Gore", "A fox"], low, &["content_policy", "not_attempted"]) },
    ]
}

fn of_jobs() -> Vec<Case> {
    let none = &["not_attempted"];
    vec![
        Case::new(&["A fox [fault:status=401]"], "unauthorized", none),
        Case::new(&["A fox [fault:status=402]"], "insufficient_credits", none),
        Case::new(&["A fox [fault:status=404]"], "unknown_engine", none),
        Case { config: json!({"max_cost_usd": 0.01}), ..Case::new(&["A fox"], "budget_exceeded", none) },
        Case { settings: &[("WORKER_DAILY_BUDGET_USD", "0")], ..Case::new(&["A fox"], "budget_exceeded", none) },
    ]
}

#[tokio::test]
async fn every_code_of_an_image_is_produced() -> Result<()> {
    for case in of_images() {
        case.check().await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_code_of_a_job_is_produced() -> Result<()> {
    for case in of_jobs() {
        case.check().await?;
    }
    Ok(())
}

#[test]
fn no_code_is_left_out() {
    let cases = || of_images().into_iter().chain(of_jobs());
    let images: HashSet<&str> = cases().flat_map(|case| case.images.iter().copied()).collect();
    assert_eq!(images, ImageFailureCode::ALL.iter().map(|code| code.as_str()).collect());
    let mut jobs: HashSet<&str> = cases().map(|case| case.job).collect();
    // Produced where commands come from outside: see the tests of messages.
    jobs.insert("invalid_request");
    assert_eq!(jobs, JobFailureCode::ALL.iter().map(|code| code.as_str()).collect());
}
