//! Where the CPU time of a worker goes: samples of `perf`, assigned to parts by the function that ran.

use anyhow::{Context, Result, ensure};

use super::perf::Recording;

/// The parts, each with texts that occur in the names of its functions. The first match counts.
const PARTS: [(&str, &[&str]); 15] = [
    ("verify the file", &["fast_png::check", "fast_png5check", "BitReader"]),
    ("encode", &["fast_png", "jpeg_encoder"]),
    ("resize", &["fast_image_resize"]),
    ("decode", &["fdeflate", "png::", "zune_jpeg", "image::", "unfilter"]),
    ("quality check", &["quality_check"]),
    ("hash and checksums", &["sha2", "sha256", "crc32", "adler"]),
    ("HTTP", &["hyper", "reqwest", "httparse", "http::", "tower", "axum"]),
    ("database", &["sqlite", "sqlx", "sea_orm", "sea_query", "asset_store", "libsql"]),
    ("broker", &["lapin", "amq_protocol", "flume"]),
    ("log and telemetry", &["tracing", "json_subscriber", "opentelemetry", "prometheus"]),
    (
        "writing files, in the kernel",
        &["from_iter", "ext4", "jbd2", "filemap", "writeback", "buffer_head", "blk_", "virtio", "iowrite"],
    ),
    ("page faults", &["page_fault", "clear_page", "do_anonymous", "alloc_pages", "folio", "lru_", "zap_pte", "unmap_"]),
    ("network, in the kernel", &["tcp_", "skb", "inet_", "sock_", "ip_", "__netif", "loopback", "to_iter"]),
    ("allocator and copies", &["malloc", "free", "memmove", "memcpy", "memset", "memcmp"]),
    (
        "runtime and scheduler",
        &["tokio", "futures", "parking_lot", "epoll", "futex", "sched", "task_switch", "_raw_spin", "irq"],
    ),
];

/// The share of each part, the largest first.
pub(super) async fn read_parts(recording: &Recording) -> Result<Vec<(&'static str, f64)>> {
    let arguments = ["report", "--stdio", "--no-children", "--fields", "overhead,sym", "--percent-limit", "0"];
    let report = tokio::process::Command::new("perf").args(arguments).arg("--input").arg(recording.file()).output();
    let report = report.await.context("perf cannot be run")?;
    ensure!(report.status.success(), "perf report: {}", String::from_utf8_lossy(&report.stderr));
    Ok(sum_parts(&String::from_utf8_lossy(&report.stdout)))
}

/// Sums lines such as `12.34%  [.] fast_png::encode::write_row` by part.
fn sum_parts(report: &str) -> Vec<(&'static str, f64)> {
    let mut sums: Vec<(&'static str, f64)> = PARTS.iter().map(|(name, _)| (*name, 0.0)).collect();
    let mut other = 0.0;
    for line in report.lines() {
        let Some((percent, symbol)) = line.trim_start().split_once('%') else { continue };
        let Ok(percent) = percent.parse::<f64>() else { continue };
        match PARTS.iter().position(|(_, names)| names.iter().any(|name| symbol.contains(name))) {
            Some(part) => sums[part].1 += percent / 100.0,
            None => other += percent / 100.0,
        }
    }
    sums.push(("other", other));
    sums.retain(|(_, share)| *share > 0.0);
    sums.sort_by(|one, other| other.1.total_cmp(&one.1));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_assigned_to_parts() {
        let report = "# comment\n    50.00%  [.] asset_fast_png::check::check\n    20.00%  [.] asset_fast_png::encode::encode\n    \
                      10.00%  [k] clear_page_erms\n     5.00%  [.] sqlite3VdbeExec\n     0.50%  [.] main\n\n";
        let parts = sum_parts(report);
        let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["verify the file", "encode", "page faults", "database", "other"]);
        assert!((parts[0].1 - 0.5).abs() < 1e-9);
    }
}
