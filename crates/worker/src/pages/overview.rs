//! The overview: whether everything works, and what the last day was like.

use std::collections::BTreeMap;

use axum::response::Response;
use maud::{Markup, html};
use store::{Activity, EndedCount, WorkerReport};
use time::OffsetDateTime;

use super::chart::sparkline;
use super::components::{ago, duration, table, usd};
use super::layout::{Tab, page};
use super::remedies::remedy;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::problem::Problem;
use crate::api::request::NoQuery;

/// Maximum number of workers that are listed.
const MAX_WORKERS: u64 = 500;

/// Shows the overview. A part of it is loaded again every five seconds.
pub(super) async fn show(api: Api, visitor: Visitor, _query: NoQuery) -> Result<Response, Problem> {
    let account = api.read_account().await?;
    let workers = api.store.read_workers(MAX_WORKERS).await?;
    let leases = api.store.count_leases().await?;
    let (waiting, running) = api.store.count_open_jobs().await?;
    let hours = api.activity.last_day(&api.store).await?;
    let oldest = api.health.with_queue(|queue| queue.oldest_age_seconds());
    let last_day = DaySums::new(&hours);
    let now = OffsetDateTime::now_utc();
    let alive = workers.iter().filter(|worker| worker.is_alive).count();
    let alive = if workers.len() as u64 == MAX_WORKERS { format!("{alive} or more") } else { alive.to_string() };
    let content = html! {
        h1 { "Overview" }
        p.note {
            label data-updates hidden { input type="checkbox" checked; " update every 5 seconds" }
            " " span data-update-problem role="status" {}
        }
        div #live hx-get="/" hx-trigger="every 5s" hx-select="#live" hx-swap="outerHTML" {
            @if account.gate.is_open {
                p.notice.done { "The account gate is open: workers take commands." }
            } @else {
                div.notice.warning role="status" {
                    "The account gate is closed: commands wait on the queue."
                    ul { @for reason in &account.gate.reasons { li { (reason.message) } } }
                    a href="/account" { "Account" }
                }
            }
            @if account.queues.is_none() { p.notice.error role="status" { "The broker is not connected." } }
            div.tiles {
                (tile("Workers", &alive, &html! {
                    "leased jobs: " (leases)
                    @if let Some(queues) = &account.queues { ", consumers: " (queues.consumers) }
                }))
                (tile("Queue", &account.queues.map_or("?".to_owned(), |queues| queues.waiting.to_string()), &html! {
                    @match oldest {
                        Some(seconds) if seconds > 0.0 => { "oldest command: at most " (duration(seconds)) }
                        _ => "waiting commands"
                    }
                }))
                (tile("Jobs", &running.to_string(), &html! { "running, " (waiting) " waiting in the database" }))
                (tile("Dead letters", &account.queues.map_or("?".to_owned(), |queues| queues.dead_letters.to_string()), &html! {
                    a href="/dead-letters" { "look at them" }
                }))
                (tile("Success rate", &last_day.success_rate().map_or("–".to_owned(), |rate| format!("{rate:.1} %")), &html! {
                    "of images in 24 hours"
                }))
                (tile("Spent today", &account.budget.spent_usd.map_or("?".to_owned(), usd), &html! {
                    @match account.budget.limit_usd {
                        Some(limit) => {
                            "of " (usd(limit)) " "
                            meter min="0" max=(limit) value=(account.budget.spent_usd.unwrap_or_default()) aria-label="daily budget used" {}
                        }
                        None => "no daily budget"
                    }
                }))
                (tile("Requests a minute", &api.activity.requests_per_minute().map_or("–".to_owned(), |rate| format!("{rate:.0}")), &html! {
                    "of " (account.quota.requests_per_minute) " "
                    meter min="0" max=(account.quota.requests_per_minute) value=(api.activity.requests_per_minute().unwrap_or_default()) aria-label="quota used" {}
                    @if account.quota.pause_seconds > 0.0 { " paused for " (duration(account.quota.pause_seconds)) }
                }))
            }
            section.columns {
                (hourly("Jobs an hour", &last_day.jobs, "ended jobs in each of the last 24 hours"))
                (hourly("Images an hour", &last_day.images, "completed images in each of the last 24 hours"))
                (hourly("Failed images an hour", &last_day.failed_images, "failed images in each of the last 24 hours"))
            }
            (failures(&last_day))
            (worker_list(&workers, now))
        }
    };
    Ok(page(&visitor, "Overview", Tab::Overview, &content))
}

fn tile(name: &str, value: &str, note: &Markup) -> Markup {
    html! { div.tile { h2 { (name) } p.value { (value) } p.note { (note) } } }
}

fn hourly(name: &str, values: &[f64], label: &str) -> Markup {
    html! {
        div.card {
            h2 { (name) }
            (sparkline(values, label))
            p.note { (values.last().copied().unwrap_or_default()) " in this hour, " (values.iter().sum::<f64>()) " in 24 hours" }
        }
    }
}

fn failures(last_day: &DaySums) -> Markup {
    let head = html! { th { "Code" } th { "Of" } th.number { "Number" } th { "What to do" } };
    let rows = html! {
        @for ((code, kind), count) in &last_day.failures {
            tr {
                td { a href={ "/jobs?failure=" (code) } { code { (code) } } }
                td { (kind) }
                td.number { (count) }
                td.text { (remedy(code)) }
            }
        }
    };
    html! {
        section.card {
            h2 { "Failures in 24 hours" }
            @if last_day.failures.is_empty() { p.note { "None." } } @else { (table("failures", &head, &rows)) }
        }
    }
}

fn worker_list(workers: &[WorkerReport], now: OffsetDateTime) -> Markup {
    let head = html! { th { "Host" } th { "Heartbeat" } th { "Version" } th.number { "Jobs" } th { "Started" } };
    let rows = html! {
        @for worker in workers {
            tr {
                td { (worker.host) }
                td {
                    @if worker.is_alive { span.status.completed { "alive" } } @else { span.status.failed { "lost" } }
                    " " (ago(worker.seen_at, now))
                }
                td { (worker.version) }
                td.number { (worker.jobs) }
                td { (ago(worker.started_at, now)) }
            }
        }
    };
    html! {
        section.card {
            h2 { "Workers" }
            @if workers.is_empty() {
                p.note { "No worker has sent a heartbeat within the last day." }
            } @else {
                (table("workers", &head, &rows))
            }
        }
    }
}

/// Sums over the last 24 hours.
struct DaySums {
    /// Ended jobs of each hour.
    jobs: Vec<f64>,
    /// Completed images of each hour.
    images: Vec<f64>,
    failed_images: Vec<f64>,
    /// By code, and whether it is that of jobs or images.
    failures: BTreeMap<(String, &'static str), i64>,
}

impl DaySums {
    fn new(hours: &[Activity]) -> Self {
        let mut failures = BTreeMap::new();
        for hour in hours {
            for (kind, counts) in [("jobs", &hour.jobs), ("images", &hour.images)] {
                for EndedCount { code, count } in counts {
                    if let Some(code) = code {
                        *failures.entry((code.clone(), kind)).or_default() += count;
                    }
                }
            }
        }
        let sum = |counts: &[EndedCount], is_counted: fn(&EndedCount) -> bool| {
            let count: i64 = counts.iter().filter(|count| is_counted(count)).map(|count| count.count).sum();
            f64::from(u32::try_from(count).unwrap_or(u32::MAX))
        };
        Self {
            jobs: hours.iter().map(|hour| sum(&hour.jobs, |_| true)).collect(),
            images: hours.iter().map(|hour| sum(&hour.images, |count| count.code.is_none())).collect(),
            failed_images: hours.iter().map(|hour| sum(&hour.images, |count| count.code.is_some())).collect(),
            failures,
        }
    }

    /// The share of images that completed, in percent.
    fn success_rate(&self) -> Option<f64> {
        let (completed, failed) = (self.images.iter().sum::<f64>(), self.failed_images.iter().sum::<f64>());
        let all = completed + failed;
        (all > 0.0).then(|| completed / all * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_tell_jobs_from_images() {
        let count = |code: Option<&str>, count| EndedCount { code: code.map(str::to_owned), count };
        let hours = [
            Activity {
                jobs: vec![count(None, 3), count(Some("expired"), 1)],
                images: vec![count(None, 9), count(Some("timeout"), 1)],
            },
            Activity { jobs: vec![], images: vec![count(Some("timeout"), 2)] },
        ];
        let sums = DaySums::new(&hours);
        assert_eq!(
            (&sums.jobs, &sums.images, &sums.failed_images),
            (&vec![4.0, 0.0], &vec![9.0, 0.0], &vec![1.0, 2.0])
        );
        let failures: Vec<_> =
            sums.failures.iter().map(|((code, kind), count)| (code.as_str(), *kind, *count)).collect();
        assert_eq!(failures, [("expired", "jobs", 1), ("timeout", "images", 3)]);
        assert_eq!(sums.success_rate(), Some(75.0));
        assert_eq!(DaySums::new(&[]).success_rate(), None);
    }
}
