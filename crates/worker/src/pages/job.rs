//! One job: its pictures, its failures, its history.

mod timeline;

use axum::extract::RawQuery;
use axum::response::Response;
use domain::rules::MAX_REASON_CHARS;
use maud::{Markup, html};
use serde_json::Value;
use store::{AssetReport, JobDetails, JobReport};
use uuid::Uuid;

use super::components::{
    THUMBNAIL_WIDTH, form_token, image_path, is_open, job_link, megabytes, notice, status, time, usd,
};
use super::form::Form;
use super::json_text::with_line_breaks;
use super::layout::{Tab, page};
use super::remedies::remedy;
use super::see_other;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::jobs::{purged_job, unknown_job};
use crate::api::problem::Problem;
use crate::api::request::{JobId, Query, check_reason};
use crate::retry::Selection;

/// Shows a job. While it runs, a part of the page is loaded again with each event.
pub(super) async fn show(
    api: Api,
    visitor: Visitor,
    JobId(job_id): JobId,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["done"])?;
    let done = query.get("done", "what became of a form", done_text)?;
    let details = read_details(&api, job_id).await?;
    let report = &details.report;
    let is_open = is_open(&report.status);
    let content = html! {
        @if let Some(done) = done { (notice(done)) }
        div #job {
            h1 { "Job " code.id { (job_id) } }
            (actions(&visitor, &details))
            @if is_open {
                p.note hidden role="status" data-events={ "/v1/jobs/" (job_id) "/events" } hx-get={ "/jobs/" (job_id) }
                    hx-trigger="job-changed" hx-select="#live" hx-target="#live" hx-swap="outerHTML" hx-sync="this:queue last" {
                    "Changes are shown as they happen."
                }
            }
            // With each event this part is loaded again, and at the end of the job all of it: a form keeps what is typed.
            div #live {
                (facts(&details))
                (failure(report))
                (pictures(report))
                section.card { h2 { "Timeline" } (timeline::render(&details)) }
                (terminal_event(&details))
            }
        }
    };
    Ok(page(&visitor, &format!("Job {job_id}"), Tab::Jobs, &content))
}

/// Reads a job that is known and not purged.
pub(super) async fn read_details(api: &Api, job_id: Uuid) -> Result<JobDetails, Problem> {
    let details = api.store.read_job_details(job_id).await?.ok_or_else(|| unknown_job(job_id))?;
    if details.report.status == domain::state::JobState::Purged.as_str() {
        return Err(purged_job(job_id));
    }
    Ok(details)
}

fn done_text(done: &str) -> Option<&'static str> {
    match done {
        "submitted" => Some("The job is submitted."),
        "known" => Some("The job was submitted before."),
        "cancelled" => Some("The job is cancelled: nothing more is paid for, and requests in flight finish."),
        "unchanged" => Some("The job had ended or was cancelled before."),
        "retry" => Some("This job makes images of another one again."),
        _ => None,
    }
}

fn facts(details: &JobDetails) -> Markup {
    let report = &details.report;
    let count = |status: &str| report.assets.iter().filter(|asset| asset.status == status).count();
    let config = details.command.as_ref().map(|command| serde_json::to_value(&command.config).unwrap_or_default());
    html! {
        dl.facts {
            div { dt { "Status" } dd { (status(&report.status)) } }
            div { dt { "Project" } dd { a href={ "/jobs?project=" (report.project_id) } { (report.project_id) } } }
            div { dt { "Images" } dd { (count("completed")) " of " (report.total) " completed, " (count("failed")) " failed" } }
            div { dt { "Cost" } dd { (usd(report.cost_usd)) } }
            div { dt { "Created" } dd { (time(report.created_at)) } }
            @if let Some(finished_at) = report.finished_at { div { dt { "Ended" } dd { (time(finished_at)) } } }
            @if let Some(expires_at) = details.expires_at { div { dt { "Expires" } dd { (time(expires_at)) } } }
            @if let Some(due_at) = report.due_at { div { dt { "Command published at" } dd { (time(due_at)) } } }
            @if let Some(engine) = &details.engine { div { dt { "Engine" } dd { (engine) } } }
            @if let Some(trace) = &details.trace {
                div { dt { "Trace id" } dd { code.id { (trace.parent.as_str().split('-').nth(1).unwrap_or_default()) } } }
            }
            @if let Some(retry_of) = report.retry_of { div { dt { "Makes images again of" } dd { (job_link(retry_of)) } } }
            @if !details.retries.is_empty() {
                div { dt { "Made again by" } dd { @for job in &details.retries { (job_link(job.id)) " " (status(&job.status)) " " } } }
            }
            @if let Some(Value::Object(config)) = &config {
                @if !config.is_empty() {
                    div.wide { dt { "Config" } dd { @for (name, value) in config { code { (name) ": " (value) } " " } } }
                }
            }
        }
    }
}

fn failure(report: &JobReport) -> Markup {
    html! {
        @if let Some(code) = &report.error_code {
            div.notice.error {
                code { (code) } ": " (report.error_message.as_deref().unwrap_or_default())
                p { (remedy(code)) }
            }
        }
    }
}

fn actions(visitor: &Visitor, details: &JobDetails) -> Markup {
    let report = &details.report;
    let (job_id, is_open) = (report.job_id, is_open(&report.status));
    let has_completed = report.assets.iter().any(|asset| asset.status == "completed");
    let has_failed = report.assets.iter().any(|asset| asset.status == "failed");
    html! {
        div.actions {
            @if has_completed { a.button href={ "/jobs/" (job_id) "/images.zip" } { "Download all as ZIP" } }
            @if visitor.may_change() && is_open && details.cancelled_at.is_none() {
                form method="post" action={ "/jobs/" (job_id) "/cancel" } {
                    (form_token(&visitor.browser))
                    label.visually-hidden for="reason" { "Reason" }
                    input #reason name="reason" placeholder="reason, optional" maxlength=(MAX_REASON_CHARS);
                    button.danger type="submit" { "Cancel job" }
                }
            }
            @if visitor.may_change() && !is_open && has_failed {
                form method="post" action={ "/jobs/" (job_id) "/retry" } {
                    (form_token(&visitor.browser))
                    label { input type="checkbox" name="include_refused"; " also those refused by content policy" }
                    button type="submit" { "Retry failed images" }
                }
            }
        }
    }
}

fn pictures(report: &JobReport) -> Markup {
    html! {
        section aria-label="pictures" {
            ol.pictures { @for asset in &report.assets { (picture(report.job_id, asset)) } }
        }
    }
}

fn picture(job_id: Uuid, asset: &AssetReport) -> Markup {
    let text = |name: &str| asset.metadata[name].as_str().unwrap_or_default();
    let page = format!("/jobs/{job_id}/images/{}", asset.index);
    html! {
        li.picture.(asset.status) id={ "image-" (asset.index) } {
            @match asset.status.as_str() {
                "completed" => {
                    a href=(page) {
                        img src=(image_path(job_id, asset.index, Some(THUMBNAIL_WIDTH))) width="480" height="270"
                            loading="lazy" decoding="async" alt=(text("description"));
                    }
                }
                "failed" => {
                    div.placeholder.failed {
                        code { (asset.error_code.as_deref().unwrap_or_default()) }
                        p { (asset.error_message.as_deref().unwrap_or_default()) }
                        p.note { (remedy(asset.error_code.as_deref().unwrap_or_default())) }
                    }
                }
                _ => { div.placeholder { "not made yet" } }
            }
            h2 { a href=(page) { (asset.index) ". " (text("description")) } }
            @if !text("english").is_empty() { p.english lang="en" { (text("english")) } }
            @if !text("prompt").is_empty() { p.prompt { (text("prompt")) } }
            p.note {
                @if let Some(seed) = asset.metadata["seed"].as_u64() { "seed " (seed) " · " }
                @if !text("engine").is_empty() { (text("engine")) " · " }
                @if !text("origin").is_empty() { (text("origin")) " · " }
                "requests: " (asset.requests) " · " (usd(asset.cost_usd))
                @if let Some(size) = asset.size_bytes { " · " (megabytes(size)) }
            }
        }
    }
}

fn terminal_event(details: &JobDetails) -> Markup {
    html! {
        @if let Some(event) = &details.terminal_event {
            details.card {
                summary { "Terminal event, as stored, with line breaks" }
                pre tabindex="0" { (with_line_breaks(event)) }
            }
        }
    }
}

/// Cancels a job.
pub(super) async fn cancel(api: Api, visitor: Visitor, JobId(job_id): JobId, form: Form) -> Result<Response, Problem> {
    let reason = check_reason(form.text("reason"))?;
    // Not of a job that is not known: its page does not exist.
    read_details(&api, job_id).await?;
    let outcome = api.cancel(visitor.caller, job_id, reason).await?.outcome;
    Ok(see_other(&format!("/jobs/{job_id}?done={outcome}")))
}

/// Makes the failed images of a job again.
pub(super) async fn retry(api: Api, visitor: Visitor, JobId(job_id): JobId, form: Form) -> Result<Response, Problem> {
    let selection = Selection::Failed { include_refused: form.is_checked("include_refused") };
    let job = api.make_again(visitor.caller, job_id, selection).await?;
    Ok(see_other(&format!("/jobs/{}?done=retry", job.job_id)))
}
