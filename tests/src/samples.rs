//! Metrics in Prometheus' text format, as returned by a scrape.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

/// Samples of one scrape.
#[derive(Debug, Default)]
pub struct Samples {
    /// Metric kind by the name in `# TYPE`.
    kinds: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Samples {
    /// Parses a scrape; lines that are not samples are skipped.
    pub fn parse(text: &str) -> Self {
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let kinds = kinds.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
        Self { kinds, samples: text.lines().filter_map(Sample::parse).collect() }
    }

    /// Returns the sum of all samples with this name and these labels; `None` if there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matches = |sample: &&Sample| {
            let label = |(label, value): &(&str, &str)| sample.labels.get(*label).map(String::as_str) == Some(*value);
            sample.name == name && labels.iter().all(label)
        };
        let found: Vec<f64> = self.samples.iter().filter(matches).map(|sample| sample.value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// Returns the names of all metrics.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.kinds.keys().cloned()
    }

    /// Returns the labels of each metric by its name, without the label `le` of histograms.
    pub fn labels(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for sample in &self.samples {
            let name = self.family(&sample.name);
            let own = sample.labels.keys().filter(|label| *label != "le").cloned();
            labels.entry(name).or_default().extend(own);
        }
        labels
    }

    /// Name of the metric that a sample belongs to; the samples of a histogram have suffixes.
    fn family(&self, sample: &str) -> String {
        let parts = ["_bucket", "_sum", "_count"].iter().filter_map(|part| sample.strip_suffix(part));
        let histogram = parts.into_iter().find(|name| self.kinds.get(*name).is_some_and(|kind| kind == "histogram"));
        histogram.unwrap_or(sample).to_owned()
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        // Label values here contain neither commas nor quotation marks.
        let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once("=\""));
        let labels = labels.map(|(name, value)| (name.to_owned(), value.trim_end_matches('"').to_owned())).collect();
        Some(Self { name: name.to_owned(), labels, value: value.parse().ok()? })
    }
}

/// Parses `docs/telemetry.md` and returns the Prometheus name of each documented metric with its labels.
pub fn documented_metrics() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/telemetry.md"))?;
    let rows = page.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 5);
    let parse_row = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells.get(5)?.split(", ").map(|label| label.trim_matches('`').replace('.', "_"));
        Some((cells.get(2)?.trim_matches('`').to_owned(), labels.filter(|label| !label.is_empty()).collect()))
    };
    Ok(rows.filter_map(parse_row).collect())
}
