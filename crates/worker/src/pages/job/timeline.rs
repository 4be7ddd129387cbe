//! What happened to a job when, as far as the database tells.

use maud::{Markup, html};
use store::JobDetails;
use time::OffsetDateTime;

use crate::pages::components::time;

/// Renders the history of a job, oldest first.
pub(super) fn render(details: &JobDetails) -> Markup {
    html! {
        div.timeline tabindex="0" role="region" aria-label="timeline" {
            ol { @for (at, text) in entries(details) { li { (time(at)) " " (text) } } }
        }
    }
}

fn entries(details: &JobDetails) -> Vec<(OffsetDateTime, String)> {
    let report = &details.report;
    let mut entries = Vec::new();
    if !details.was_claimed {
        entries.push((report.created_at, "submitted".to_owned()));
    } else if details.attempts.is_empty() {
        // Before the attempts were recorded.
        entries.push((report.created_at, "started".to_owned()));
    }
    for (position, attempt) in details.attempts.iter().enumerate() {
        entries.push((attempt.started_at, format!("attempt {} started on {}", position + 1, attempt.worker)));
        let end = match (attempt.released_at, attempt.is_counted) {
            (Some(at), true) => Some((at, "ended without a result; it counts")),
            (Some(at), false) => Some((at, "returned to the queue; it does not count")),
            // The next claim shows that the lease had expired.
            (None, _) => details.attempts.get(position + 1).map(|next| (next.started_at, "lost: its lease expired")),
        };
        entries.extend(end.map(|(at, text)| (at, format!("attempt {} {text}", position + 1))));
    }
    for asset in &report.assets {
        let index = asset.index;
        match (asset.status.as_str(), &asset.error_code) {
            ("completed", _) => entries.push((asset.updated_at, format!("image {index} completed"))),
            ("failed", Some(code)) => entries.push((asset.updated_at, format!("image {index} failed: {code}"))),
            _ => {}
        }
    }
    entries.extend(details.cancelled_at.map(|at| {
        let reason = details.cancel_reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        (at, format!("cancelled{reason}"))
    }));
    // The failures of its images are written with the end of a job, a moment later by their times.
    let last_image = report.assets.iter().map(|asset| asset.updated_at).max();
    entries.extend(report.finished_at.map(|at| match (at.max(last_image.unwrap_or(at)), &report.error_code) {
        (at, Some(code)) => (at, format!("job failed: {code}")),
        (at, None) => (at, "job completed".to_owned()),
    }));
    entries.extend(details.published_at.map(|at| (at, "terminal event received by a queue".to_owned())));
    // Stable: entries of the same time stay in this order.
    entries.sort_by_key(|(at, _)| *at);
    entries
}

#[cfg(test)]
mod tests {
    use store::{Attempt, JobReport};
    use time::Duration;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn attempts_end_by_release_or_by_the_next_claim() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let at = |seconds: i64| start + Duration::seconds(seconds);
        let attempt = |from: i64, released: Option<i64>, is_counted: bool| Attempt {
            worker: format!("pod-{from}"),
            started_at: at(from),
            released_at: released.map(at),
            is_counted,
        };
        let report = JobReport {
            job_id: Uuid::nil(),
            project_id: 1,
            status: "failed".to_owned(),
            retry_of: None,
            total: 1,
            attempts: 1,
            error_code: Some("expired".to_owned()),
            error_message: None,
            cost_usd: 0.0,
            event_published: true,
            created_at: start,
            due_at: None,
            finished_at: Some(at(40)),
            assets: Vec::new(),
        };
        let details = JobDetails {
            report,
            command: None,
            engine: None,
            attempts: vec![
                attempt(0, Some(5), true),
                attempt(10, Some(15), false),
                attempt(20, None, false),
                attempt(30, None, false),
            ],
            was_claimed: true,
            cancelled_at: None,
            cancel_reason: None,
            expires_at: None,
            published_at: Some(at(41)),
            terminal_event: None,
            trace: None,
            retries: Vec::new(),
        };
        let texts: Vec<String> = entries(&details)
            .into_iter()
            .map(|(at, text)| format!("{} {text}", (at - start).whole_seconds()))
            .collect();
        assert_eq!(
            texts,
            [
                "0 attempt 1 started on pod-0",
                "5 attempt 1 ended without a result; it counts",
                "10 attempt 2 started on pod-10",
                "15 attempt 2 returned to the queue; it does not count",
                "20 attempt 3 started on pod-20",
                "30 attempt 3 lost: its lease expired",
                "30 attempt 4 started on pod-30",
                "40 job failed: expired",
                "41 terminal event received by a queue",
            ]
        );
    }
}
