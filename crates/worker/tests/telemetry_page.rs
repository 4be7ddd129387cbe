//! `docs/telemetry.md` says what there is.

use std::path::Path;

use asset_worker::settings::OTEL;
use asset_worker::telemetry::metrics::{ALL, Kind, Spec, Stage};

fn page() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/telemetry.md")).expect("the page")
}

/// The name in Prometheus, without a histogram's `_bucket`, `_sum` and `_count`.
fn prometheus(spec: &Spec) -> String {
    let name = spec.name.replace('.', "_");
    let unit = match spec.unit {
        "s" => "_seconds",
        "1" if spec.kind != Kind::Counter => "_ratio",
        _ => "",
    };
    let total = if spec.kind == Kind::Counter { "_total" } else { "" };
    format!("{name}{unit}{total}")
}

fn row(spec: &Spec) -> String {
    let unit = if spec.unit.is_empty() { String::new() } else { format!("`{}`", spec.unit) };
    let kind = match spec.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram(_) => "histogram",
    };
    let attributes: Vec<String> = spec.attributes.iter().map(|attribute| format!("`{attribute}`")).collect();
    format!(
        "| `{}` | `{}` | {} | {unit} | {} | {} |",
        spec.name,
        prometheus(spec),
        kind,
        attributes.join(", "),
        spec.description
    )
}

#[test]
fn the_page_lists_every_metric_and_no_other() {
    let page = page();
    let listed: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 5).collect();
    let expected: Vec<String> = ALL.iter().map(row).collect();
    assert_eq!(listed, expected, "the rows that docs/telemetry.md should have:\n{}\n", expected.join("\n"));
}

#[test]
fn the_page_names_every_stage_and_every_variable() {
    let page = page();
    for name in OTEL.iter().copied().chain(Stage::ALL.iter().map(|stage| stage.as_str())) {
        assert!(page.contains(&format!("`{name}`")), "{name} is missing");
    }
}

#[test]
fn names_and_units_keep_to_the_conventions() {
    for spec in ALL {
        let letters = |c: char| c.is_ascii_lowercase() || matches!(c, '.' | '_');
        assert!(spec.name.chars().all(letters) && !spec.name.ends_with("total"), "{}", spec.name);
        assert!(
            matches!(spec.unit, "s" | "USD" | "1" | "") || spec.unit.starts_with('{'),
            "{}: {}",
            spec.name,
            spec.unit
        );
        assert!(!spec.description.is_empty());
    }
}
