//! Every failure code of the contract is produced by a real job.

use std::collections::HashSet;

use anyhow::Result;
use domain::failure::{ImageFailureCode, JobFailureCode};
use integration_tests::{TestEnv, command, failure_codes};
use serde_json::{Value, json};

/// A failing job with its expected job code and image codes.
struct Case {
    descriptions: &'static [&'static str],
    config: Value,
    settings: &'static [(&'static str, &'static str)],
    job_code: &'static str,
    image_codes: &'static [&'static str],
}

impl Case {
    fn new(description: &'static [&'static str], job_code: &'static str, image_codes: &'static [&'static str]) -> Self {
        Self { descriptions: description, config: json!({}), settings: &[], job_code, image_codes }
    }

    async fn check(&self) -> Result<()> {
        let mut env = TestEnv::new().await?;
        env.set("WORKER_JOB_RETRY_DELAYS", "10ms");
        for (name, value) in self.settings {
            env.set(name, *value);
        }
        if self.image_codes.contains(&"storage") {
            // A file where a folder is needed makes storage fail.
            std::fs::create_dir_all(env.stored_path(""))?;
            std::fs::write(env.stored_path("projects"), "in the way")?;
        }
        let data = env.generate(&command(1, self.descriptions, &self.config)).await?.expect_data("failed")?;
        assert_eq!(data["error"]["code"], self.job_code, "{data}");
        assert_eq!(failure_codes(&data), self.image_codes, "{data}");
        let rows = env.query_rows(r#"SELECT error_code FROM assets ORDER BY "index""#).await?;
        let stored: Vec<_> = rows.iter().filter_map(|row| row["error_code"].as_str()).collect();
        assert_eq!(stored, self.image_codes);
        Ok(())
    }
}

fn image_cases() -> Vec<Case> {
    let rate_too_low = "success_rate_too_low";
    let timeout_settings =
        &[("STABILITY_TIMEOUT", "1s"), ("STABILITY_RETRY_DELAYS", "none"), ("WORKER_JOB_MAX_ATTEMPTS", "1")];
    let one_by_one = json!({"max_concurrent": 1});
    vec![
        Case::new(&["A gory battle"], rate_too_low, &["content_policy"]),
        Case::new(&["A fox [fault:filtered]"], rate_too_low, &["content_policy"]),
        Case::new(&["A fox [fault:blank]"], rate_too_low, &["invalid_image"]),
        Case::new(&["A fox [fault:status=429]"], rate_too_low, &["rate_limited"]),
        Case::new(&["A fox [fault:status=503]"], rate_too_low, &["provider_unavailable"]),
        Case { settings: timeout_settings, ..Case::new(&["A fox [fault:slow=60000]"], rate_too_low, &["timeout"]) },
        Case::new(&["一隻狐狸"], rate_too_low, &["translation_unavailable"]),
        Case::new(&["A fox [fault:status=422]"], rate_too_low, &["rejected_request"]),
        Case::new(&["A fox"], "attempts_exhausted", &["storage"]),
        Case {
            config: one_by_one,
            ..Case::new(&["Gore", "A fox"], rate_too_low, &["content_policy", "not_attempted"])
        },
    ]
}

fn job_cases() -> Vec<Case> {
    let none = &["not_attempted"];
    // The account gate closes, so there is no second attempt before it opens.
    let settings = &[("WORKER_JOB_MAX_ATTEMPTS", "1")];
    vec![
        Case { settings, ..Case::new(&["A fox [fault:status=401]"], "unauthorized", none) },
        Case { settings, ..Case::new(&["A fox [fault:status=402]"], "insufficient_credits", none) },
        Case::new(&["A fox [fault:status=404]"], "unknown_engine", none),
        Case { config: json!({"max_cost_usd": 0.01}), ..Case::new(&["A fox"], "budget_exceeded", none) },
        Case { config: json!({"expires_at": "2001-01-01T00:00:00Z"}), ..Case::new(&["A fox"], "expired", none) },
    ]
}

#[tokio::test]
async fn every_image_failure_code_is_produced() -> Result<()> {
    for case in image_cases() {
        case.check().await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_job_failure_code_is_produced() -> Result<()> {
    for case in job_cases() {
        case.check().await?;
    }
    Ok(())
}

#[test]
fn cases_cover_all_failure_codes() {
    let cases = || image_cases().into_iter().chain(job_cases());
    let images: HashSet<&str> = cases().flat_map(|case| case.image_codes.iter().copied()).collect();
    assert_eq!(images, ImageFailureCode::ALL.iter().map(|code| code.as_str()).collect());
    let mut jobs: HashSet<&str> = cases().map(|case| case.job_code).collect();
    // These need a message from outside: the tests in `messages.rs` and `stop_jobs.rs` produce them.
    jobs.extend(["invalid_request", "cancelled"]);
    assert_eq!(jobs, JobFailureCode::ALL.iter().map(|code| code.as_str()).collect());
}
