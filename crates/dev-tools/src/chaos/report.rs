//! What was done, and what was found, as a table in Markdown.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::time::Duration;

use super::cluster::Cluster;
use super::{Disturbance, Plan};

/// More violations than this are counted, and not shown.
const MAX_SHOWN_VIOLATIONS: usize = 20;

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Repeats the run.
    pub seed: u64,
    jobs: usize,
    images: usize,
    workers: usize,
    first_outage: Duration,
    disturbance_counts: BTreeMap<Disturbance, u32>,
    /// Promises that were found broken, in words.
    pub violations: Vec<String>,
    pub(super) elapsed: Duration,
    /// Where logs and files are kept, if something was found.
    pub(super) folder: Option<PathBuf>,
    pub(super) completed: usize,
    pub(super) failed: usize,
    pub(super) terminal_events: usize,
    pub(super) files: usize,
    pub(super) requests: u32,
    pub(super) expected_retries: u32,
    pub(super) repeats_after_interruptions: u32,
    pub(super) dead_letters: usize,
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
            terminal_events: 0,
            files: 0,
            requests: 0,
            expected_retries: 0,
            repeats_after_interruptions: 0,
            dead_letters: 0,
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
        writeln!(f, "Seed {seed}: {jobs} jobs of {images} images over {workers} workers, in {took} s\n")?;
        writeln!(f, "| what was done | times |\n| --- | ---: |")?;
        for (trouble, times) in &self.disturbance_counts {
            write!(f, "| {}", trouble.as_str())?;
            if matches!(trouble, Disturbance::RestartBroker | Disturbance::CrashDatabase) {
                write!(f, ", the first time for {} s", self.first_outage.as_secs())?;
            }
            writeln!(f, " | {times} |")?;
        }
        writeln!(f, "\n| what was found | |\n| --- | ---: |")?;
        for (what, count) in [
            ("jobs completed", self.completed),
            ("jobs failed, as they had to", self.failed),
            ("terminal events, repeats included", self.terminal_events),
            ("files, each whole and 1920x1080", self.files),
            ("requests", self.requests as usize),
            ("of them retries that the sandbox asked for", self.expected_retries as usize),
            ("of them repeats after a worker's end", self.repeats_after_interruptions as usize),
            ("dead letters, each of a message that is no command", self.dead_letters),
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
