//! The memory of a worker during many images.

use std::fmt::{self, Display, Formatter};

use anyhow::{Context, Result};
use bytes::Bytes;
use dev_services::wait::wait_until;

use super::{photo_env, to_mib};
use crate::measurement_result::{MEASUREMENT_TIMEOUT, publish_jobs};

/// The memory is read each time another tenth of the images is finished.
const READINGS: usize = 10;

/// Jobs that one worker runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct LongRun {
    pub(super) jobs: usize,
    pub(super) images: usize,
}

/// The resident memory in the course of a run, in MiB.
#[derive(Debug)]
pub(super) struct MemoryCourse {
    run: LongRun,
    at_start: f64,
    readings: Vec<f64>,
    peak: f64,
}

impl LongRun {
    pub(super) async fn measure(self, photos: &[Bytes]) -> Result<MemoryCourse> {
        let env = photo_env(photos).await?;
        let worker = env.start_ready_worker().await?;
        let usage = || worker.usage().context("the worker has exited");
        let at_start = to_mib(usage()?.memory_kib);
        publish_jobs(&env, self.jobs, self.images).await?;
        let mut readings = Vec::new();
        for reading in 1..=READINGS {
            let images = self.jobs * self.images * reading / READINGS;
            let finished = async || {
                let rows = env.query_rows("SELECT id FROM assets WHERE status = 'completed'").await.ok()?;
                (rows.len() >= images).then_some(())
            };
            wait_until(&format!("{images} images"), MEASUREMENT_TIMEOUT, finished).await?;
            readings.push(to_mib(usage()?.memory_kib));
        }
        Ok(MemoryCourse { run: self, at_start, readings, peak: to_mib(usage()?.peak_memory_kib) })
    }
}

impl MemoryCourse {
    pub(super) fn write_head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "| MiB after | 0% |")?;
        (1..=self.readings.len()).try_for_each(|reading| write!(f, " {}% |", reading * 100 / self.readings.len()))?;
        writeln!(f, " peak |\n| --- |{}", " ---: |".repeat(self.readings.len() + 2))
    }
}

impl Display for MemoryCourse {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let LongRun { jobs, images } = self.run;
        let plural =
            |count: usize, word: &str| if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") };
        write!(f, "| {} of {} | {:.0} |", plural(jobs, "job"), plural(images, "image"), self.at_start)?;
        self.readings.iter().try_for_each(|mib| write!(f, " {mib:.0} |"))?;
        write!(f, " {:.0} |", self.peak)
    }
}
