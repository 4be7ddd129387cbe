//! The report of a chaos run: disturbances and results as Markdown tables.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::Duration;

use super::cluster::Cluster;
use super::{Disturbance, Plan};

/// Maximum number of violations shown; further ones are only counted.
const MAX_SHOWN_VIOLATIONS: usize = 20;

/// Result of a chaos run.
#[derive(Debug)]
pub struct Report {
    /// Seed, with which the run can be repeated.
    pub seed: u64,
    jobs: usize,
    images: usize,
    workers: usize,
    first_outage: Duration,
    disturbance_counts: BTreeMap<Disturbance, u32>,
    /// Descriptions of the violations; empty if all checks passed.
    pub violations: Vec<String>,
    pub(super) elapsed: Duration,
    /// Folder with logs and files, which are kept if there are violations.
    pub(super) folder: Option<PathBuf>,
    pub(super) completed: usize,
    pub(super) failed: usize,
    pub(super) cancelled: usize,
    pub(super) expired: usize,
    pub(super) retries: usize,
    pub(super) terminal_events: usize,
    pub(super) files: usize,
    pub(super) requests: u32,
    pub(super) upscaled: u32,
    pub(super) rejected_keys: u32,
    pub(super) expected_retries: u32,
    pub(super) repeats_after_interruptions: u32,
    pub(super) dead_letters: usize,
    /// Commands of jobs that went on although the broker had given up their delivery.
    pub(super) given_up: usize,
}

impl Report {
    pub(super) fn new(plan: &Plan, stage: &Cluster) -> Self {
        Self {
            seed: plan.seed,
            jobs: plan.jobs,
            images: stage.jobs.iter().map(|order| order.images.len()).sum(),
            workers: plan.workers,
            first_outage: plan.first_outage,
            disturbance_counts: stage.disturbance_counts.clone(),
            violations: stage.violations.clone(),
            elapsed: Duration::ZERO,
            folder: None,
            completed: 0,
            failed: 0,
            cancelled: 0,
            expired: 0,
            retries: 0,
            terminal_events: 0,
            files: 0,
            requests: 0,
            upscaled: 0,
            rejected_keys: 0,
            expected_retries: 0,
            repeats_after_interruptions: 0,
            dead_letters: 0,
            given_up: 0,
        }
    }

    pub(super) fn add_violation(&mut self, what: String) {
        self.violations.push(what);
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { seed, jobs, images, workers, .. } = self;
        let took = self.elapsed.as_secs();
        writeln!(f, "Seed {seed}: {jobs} jobs with {images} images, {workers} workers, {took} s\n")?;
        writeln!(f, "| disturbance | times |\n| --- | ---: |")?;
        for (trouble, times) in &self.disturbance_counts {
            write!(f, "| {}", trouble.as_str())?;
            if matches!(trouble, Disturbance::RestartBroker | Disturbance::CrashDatabase) {
                write!(f, "; the first outage lasts {} seconds", self.first_outage.as_secs())?;
            }
            writeln!(f, " | {times} |")?;
        }
        writeln!(f, "\n| result | |\n| --- | ---: |")?;
        for (what, count) in [
            ("jobs completed", self.completed),
            ("jobs failed, as expected", self.failed),
            ("of these, cancelled", self.cancelled),
            ("of these, expired", self.expired),
            ("jobs that made failed images again", self.retries),
            ("terminal events, repeats included", self.terminal_events),
            ("files, each complete and 1920x1080", self.files),
            ("requests to the sandbox", self.requests as usize),
            ("of these, images upscaled", self.upscaled as usize),
            ("of these, rejected because of the key", self.rejected_keys as usize),
            ("of these, retries caused by faults of the sandbox", self.expected_retries as usize),
            ("of these, repeats after a worker was interrupted", self.repeats_after_interruptions as usize),
            ("dead letters, each an invalid or conflicting message", self.dead_letters - self.given_up),
            ("dead letters of jobs that went on", self.given_up),
            ("**violations**", self.violations.len()),
        ] {
            writeln!(f, "| {what} | {count} |")?;
        }
        for violation in self.violations.iter().take(MAX_SHOWN_VIOLATIONS) {
            write!(f, "\n- {violation}")?;
        }
        if self.violations.len() > MAX_SHOWN_VIOLATIONS {
            write!(f, "\n- and {} more", self.violations.len() - MAX_SHOWN_VIOLATIONS)?;
        }
        if let Some(folder) = &self.folder {
            write!(f, "\n\nlogs and files: {}", folder.display())?;
        }
        Ok(())
    }
}
