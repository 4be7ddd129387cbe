//! Counts the allocations of a worker with probes of the kernel at the functions of the C library.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::perf::Recording;

/// The events of the probes, as `perf` names them.
pub(super) const EVENTS: [&str; 4] = [
    "probe_libc:worker_malloc",
    "probe_libc:worker_calloc",
    "probe_libc:worker_realloc",
    "probe_libc:worker_posix_memalign",
];

/// The probes; dropping them removes them.
pub(super) struct Probes;

impl Probes {
    /// # Errors
    ///
    /// If the kernel does not accept probes, which need root.
    pub(super) fn add() -> Result<Self> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let library =
            maps.split_whitespace().find(|path| path.ends_with("/libc.so.6")).context("no C library is loaded")?;
        // Those of an interrupted run.
        drop(Self);
        let mut command = Command::new("perf");
        command.args(["probe", "--quiet", "--exec", library]);
        for event in EVENTS {
            let name = event.trim_start_matches("probe_libc:");
            command.arg("--add").arg(format!("{name}={}", name.trim_start_matches("worker_")));
        }
        let added = command.output().context("perf cannot be run")?;
        ensure!(
            added.status.success(),
            "perf probe, which needs root: {}",
            String::from_utf8_lossy(&added.stderr).trim()
        );
        Ok(Self)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let _ = Command::new("perf").args(["probe", "--quiet", "--del", "probe_libc:worker_*"]).output();
    }
}

/// How often the functions were called.
pub(super) fn read_count(recording: &Recording) -> Result<f64> {
    sum_counts(&std::fs::read_to_string(recording.file())?)
}

/// Sums lines such as `1234,,probe_libc:worker_malloc,…`.
fn sum_counts(report: &str) -> Result<f64> {
    let lines = report.lines().filter(|line| line.contains("probe_libc:"));
    let counts: Vec<f64> = lines
        .map(|line| line.split(',').next().and_then(|count| count.parse().ok()))
        .collect::<Option<_>>()
        .with_context(|| format!("perf has not counted: {report}"))?;
    ensure!(counts.len() == EVENTS.len(), "perf has not counted all events: {report}");
    Ok(counts.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_functions_are_added() {
        let report = "# started on Thu\n\n1234,,probe_libc:worker_malloc,99,100.00,,\n5,,probe_libc:worker_calloc,9,100.00,,\n\
                      6,,probe_libc:worker_realloc,9,100.00,,\n0,,probe_libc:worker_posix_memalign,9,100.00,,\n";
        assert!((sum_counts(report).expect("all events are counted") - 1245.0).abs() < f64::EPSILON);
        assert!(sum_counts(&report.replace("1234", "<not counted>")).is_err());
        assert!(sum_counts("").is_err());
    }
}
