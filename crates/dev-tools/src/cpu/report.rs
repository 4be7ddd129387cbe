//! The results of all measurements, as tables.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::celery::CeleryResult;
use super::long_runs::MemoryCourse;
use super::{Round, median};

/// Results of a measurement; shown as Markdown.
#[derive(Debug, Default)]
pub struct CpuReport {
    /// The measured rounds of one build, or of both.
    pub(super) builds: Vec<(&'static str, Vec<Round>)>,
    pub(super) celery: Option<CeleryResult>,
    /// Parts of the CPU time: name and share.
    pub(super) parts: Vec<(&'static str, f64)>,
    pub(super) allocations_per_image: Option<f64>,
    /// From the start of the process until it has taken its first command, for each start.
    pub(super) start_up: Vec<Duration>,
    pub(super) long_runs: Vec<MemoryCourse>,
}

impl Display for CpuReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.write_rounds(f)?;
        self.write_parts(f)?;
        if let Some(count) = self.allocations_per_image {
            writeln!(f, "\nAllocations an image: {count:.0}")?;
        }
        let start_up = median(self.start_up.iter().map(Duration::as_secs_f64)) * 1_000.0;
        writeln!(f, "\nFrom the start to the first command taken, median: {start_up:.0} ms")?;
        if let Some(first) = self.long_runs.first() {
            writeln!(f)?;
            first.write_head(f)?;
        }
        self.long_runs.iter().try_for_each(|course| writeln!(f, "{course}"))
    }
}

impl CpuReport {
    fn cpu(&self) -> f64 {
        self.builds.first().map_or(f64::NAN, |(_, rounds)| median(rounds.iter().map(|round| round.cpu_ms_per_image)))
    }

    fn write_rounds(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "| median of the rounds | CPU ms an image | images a second | page faults an image | peak MiB |")?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: |")?;
        let celery = self.celery.as_ref().map(|celery| ("Celery design", vec![celery.round]));
        for (name, rounds) in self.builds.iter().chain(&celery) {
            let of = |value: fn(&Round) -> f64| median(rounds.iter().map(value));
            let (cpu, rate) = (of(|round| round.cpu_ms_per_image), of(|round| round.images_per_second));
            let (faults, peak) = (of(|round| round.faults_per_image), of(|round| round.peak_mib));
            writeln!(f, "| {name} | {cpu:.1} | {rate:.1} | {faults:.0} | {peak:.0} |")?;
        }
        if let [(_, these), (_, baseline)] = &self.builds[..] {
            let ratios = these.iter().zip(baseline).map(|(one, other)| one.cpu_ms_per_image / other.cpu_ms_per_image);
            writeln!(f, "\nCPU compared with the baseline, median of the pairs: {:.3}", median(ratios))?;
        }
        if let Some(celery) = &self.celery {
            writeln!(
                f,
                "\nCPU of the Celery design for each ms of this build: {:.1}",
                celery.round.cpu_ms_per_image / self.cpu()
            )?;
            let (mean, largest) = (celery.mean_size_ratio(), celery.largest_size_ratio());
            writeln!(f, "Size of the files compared with Pillow's: mean {mean:.3}, largest {largest:.3}")?;
        }
        Ok(())
    }

    fn write_parts(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.parts.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n| part | share | CPU ms an image |\n| --- | ---: | ---: |")?;
        let cpu = self.cpu();
        self.parts
            .iter()
            .try_for_each(|(name, share)| writeln!(f, "| {name} | {:.1}% | {:.2} |", share * 100.0, share * cpu))
    }
}
