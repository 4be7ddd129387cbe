//! `costs`: shows what jobs have cost by project, day or engine.

use std::time::Duration;

use domain::money::MicroUsd;
use serde::Serialize;
use store::{CostKey, CostSum};

use super::database::open_store;
use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::tables;
use super::time_ago::time_ago;
use crate::cost_policy::format_usd;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// What to sum the costs by
    #[arg(long, value_name = "KEY", default_value = "project")]
    by: Key,
    /// Count the costs of this time up to now, in whole UTC days
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    since: Duration,
    /// Print CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Key {
    Project,
    Day,
    Engine,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Day => "day",
            Self::Engine => "engine",
        }
    }
}

/// The costs as printed.
#[derive(Debug, Serialize)]
struct CostReport {
    by: &'static str,
    since: String,
    costs: Vec<CostView>,
    total: CostView,
}

#[derive(Debug, Serialize)]
struct CostView {
    /// Project, day or engine; `total` for the sum.
    key: String,
    jobs: i64,
    requests: i64,
    images: i64,
    cached: i64,
    retries: i64,
    cost_usd: f64,
}

impl From<&CostSum> for CostView {
    fn from(sum: &CostSum) -> Self {
        let CostSum { key, jobs, requests, images, cached, retries, micro_usd } = sum;
        let key = if key.is_empty() { "none".to_owned() } else { key.clone() };
        let (jobs, requests, images, cached, retries) = (*jobs, *requests, *images, *cached, *retries);
        Self { key, jobs, requests, images, cached, retries, cost_usd: MicroUsd(*micro_usd).usd() }
    }
}

impl CostView {
    /// The columns as texts, with the cost in USD.
    fn columns(&self) -> [String; 7] {
        let counts = [self.jobs, self.requests, self.images, self.cached, self.retries];
        let [jobs, requests, images, cached, retries] = counts.map(|count| count.to_string());
        [self.key.clone(), jobs, requests, images, cached, retries, format_usd(self.cost_usd)]
    }
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let key = match options.by {
        Key::Project => CostKey::Project,
        Key::Day => CostKey::Day,
        Key::Engine => CostKey::Engine,
    };
    let since = time_ago(options.since).date();
    let sums = open_store(settings).await?.read_costs(key, since).await?;
    let report = CostReport {
        by: options.by.name(),
        since: since.to_string(),
        costs: sums.iter().map(CostView::from).collect(),
        total: CostView::from(&add_up(&sums)),
    };
    screen.print(&if options.json {
        to_json(&report)
    } else if options.csv {
        format_csv(&report)
    } else {
        let rows = report.costs.iter().chain([&report.total]).map(CostView::columns);
        format!("costs since {} 00:00 UTC\n{}", report.since, tables::cost_table(report.by, rows))
    });
    Ok(())
}

fn add_up(sums: &[CostSum]) -> CostSum {
    let add = |value: fn(&CostSum) -> i64| sums.iter().map(value).sum();
    CostSum {
        key: "total".to_owned(),
        jobs: add(|sum| sum.jobs),
        requests: add(|sum| sum.requests),
        images: add(|sum| sum.images),
        cached: add(|sum| sum.cached),
        retries: add(|sum| sum.retries),
        micro_usd: add(|sum| sum.micro_usd),
    }
}

/// One line for each key, without the total. No key contains a comma or a quote.
fn format_csv(report: &CostReport) -> String {
    let header = format!("{},jobs,requests,images,cached,retries,cost_usd\n", report.by);
    report.costs.iter().fold(header, |csv, costs| csv + &costs.columns().join(",") + "\n")
}
