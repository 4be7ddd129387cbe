//! The list of jobs: find them, cancel and retry many.

use std::ops::RangeInclusive;

use axum::extract::RawQuery;
use axum::http::StatusCode;
use axum::response::Response;
use domain::failure::{ImageFailureCode, JobFailureCode};
use maud::{Markup, html};
use store::{JobFilter, JobReport};
use time::OffsetDateTime;
use url::form_urlencoded::Serializer;
use uuid::Uuid;

use super::components::{Selectable, ago, field_error, job_link, notice, selectable_table, status, usd};
use super::form::Form;
use super::layout::{Tab, page_with_status};
use super::see_other;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::jobs::{JobPage, LISTED_STATES, parse_cursor};
use crate::api::problem::Problem;
use crate::api::request::{Query, parse_job_id};
use crate::retry::Selection;

/// Number of jobs on a page.
const PAGE_SIZE: u64 = 50;
/// The fields of the filter.
const FILTER: [&str; 5] = ["status", "project", "failure", "job", "description"];
/// What the query may hold beside the filter: the page of the list, and what became of a form.
const OTHERS: [&str; 5] = ["cursor", "done", "count", "skipped", "failed"];

/// The texts of the filter, with what is wrong with them.
#[derive(Default)]
struct FilterForm {
    texts: [Option<String>; FILTER.len()],
    errors: [Option<String>; FILTER.len()],
    filter: JobFilter,
}

impl FilterForm {
    fn read(query: &Query) -> Result<Self, Problem> {
        let mut form = Self::default();
        for (place, name) in FILTER.into_iter().enumerate() {
            let text = query.get(name, "a text", |text| Some(text.trim().to_owned()))?;
            form.texts[place] = text.filter(|text| !text.is_empty());
        }
        form.filter = JobFilter {
            status: form.parse(0, &format!("one of {}", LISTED_STATES.join(", ")), |text| {
                LISTED_STATES.contains(&text).then(|| text.to_owned())
            }),
            project_id: form
                .parse(1, "a whole number of at least 1", |text| text.parse::<i64>().ok().filter(|id| *id > 0)),
            failure: form.parse(2, "a failure code", |text| text.parse().ok()),
            ids: form.parse(3, "a UUID, or its first digits", id_range),
            description: form.parse(4, "a text without NUL", |text| (!text.contains('\0')).then(|| text.to_owned())),
            since: None,
        };
        Ok(form)
    }

    fn parse<T>(&mut self, place: usize, allowed: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.texts[place].as_ref()?;
        let parsed = parse(text);
        if parsed.is_none() {
            self.errors[place] = Some(format!("{text:?} is not allowed; {allowed}"));
        }
        parsed
    }

    fn is_valid(&self) -> bool {
        self.errors.iter().all(Option::is_none)
    }

    /// The filter as a query, followed by other parameters.
    fn to_query(&self, others: &[(&str, &str)]) -> String {
        let mut query = Serializer::new(String::new());
        for (name, text) in FILTER.iter().zip(&self.texts) {
            if let Some(text) = text {
                query.append_pair(name, text);
            }
        }
        query.extend_pairs(others);
        query.finish()
    }
}

/// The ids that begin with these hexadecimal digits.
fn id_range(text: &str) -> Option<RangeInclusive<Uuid>> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    let padded = |digit: &str| Uuid::try_parse(&format!("{digits}{}", digit.repeat(32 - digits.len()))).ok();
    Some(padded("0")?..=padded("f")?)
}

/// Lists the newest jobs.
pub(super) async fn list(api: Api, visitor: Visitor, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let known: Vec<&'static str> = FILTER.into_iter().chain(OTHERS).collect();
    let query = Query::parse(query.as_deref(), &known)?;
    let form = FilterForm::read(&query)?;
    let cursor = query.get("cursor", "the place of a page", parse_cursor)?;
    let jobs = if form.is_valid() {
        api.list_jobs(&form.filter, cursor, PAGE_SIZE).await?
    } else {
        JobPage { jobs: Vec::new(), next_cursor: None }
    };
    let content = html! {
        h1 { "Jobs" }
        @if let Some(done) = done_text(&query)? { (notice(&done)) }
        (filter_form(&form))
        @if form.is_valid() {
            @if jobs.jobs.is_empty() {
                p.note { "No job matches." }
            } @else {
                (job_list(&visitor, &form, &jobs.jobs))
            }
            p.pages {
                @if cursor.is_some() { a href={ "/jobs?" (form.to_query(&[])) } { "Newest" } }
                @if let Some(next) = &jobs.next_cursor {
                    a rel="next" href={ "/jobs?" (form.to_query(&[("cursor", next)])) } { "Older" }
                }
            }
        }
    };
    let code = if form.is_valid() { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    Ok(page_with_status(code, &visitor, "Jobs", Tab::Jobs, &content))
}

fn filter_form(form: &FilterForm) -> Markup {
    let text = |place: usize| form.texts[place].as_deref().unwrap_or_default();
    let error = |place: usize| form.errors[place].as_deref();
    let invalid = |place: usize| form.errors[place].as_ref().map(|_| "true");
    html! {
        form.filter method="get" action="/jobs" role="search" {
            div.field {
                label for="status" { "Status" }
                select #status name="status" aria-invalid=[invalid(0)] aria-describedby="status-error" {
                    option value="" { "all" }
                    @for state in LISTED_STATES { option value=(state) selected[state == text(0)] { (state) } }
                }
                (field_error("status", error(0)))
            }
            div.field {
                label for="project" { "Project" }
                input #project name="project" value=(text(1)) inputmode="numeric" size="8" aria-invalid=[invalid(1)] aria-describedby="project-error";
                (field_error("project", error(1)))
            }
            div.field {
                label for="failure" { "Failure" }
                select #failure name="failure" aria-invalid=[invalid(2)] aria-describedby="failure-error" {
                    option value="" { "any" }
                    optgroup label="of the job" {
                        @for code in JobFailureCode::ALL { option selected[code.as_str() == text(2)] { (code) } }
                    }
                    optgroup label="of an image" {
                        @for code in ImageFailureCode::ALL { option selected[code.as_str() == text(2)] { (code) } }
                    }
                }
                (field_error("failure", error(2)))
            }
            div.field {
                label for="job" { "Job id begins with" }
                input #job name="job" value=(text(3)) size="14" spellcheck="false" aria-invalid=[invalid(3)] aria-describedby="job-error";
                (field_error("job", error(3)))
            }
            div.field {
                label for="description" { "A description begins with" }
                input #description name="description" value=(text(4)) size="24" aria-invalid=[invalid(4)] aria-describedby="description-error";
                (field_error("description", error(4)))
            }
            div.actions {
                button type="submit" { "Find" }
                a href="/jobs" { "All jobs" }
            }
        }
    }
}

fn job_list(visitor: &Visitor, form: &FilterForm, jobs: &[JobReport]) -> Markup {
    let now = OffsetDateTime::now_utc();
    let list = Selectable {
        noun: "job",
        field: "job",
        head: html! {
            th { "Job" } th { "Status" } th.number { "Project" } th.number { "Images" } th.number { "Cost" } th { "Created" } th { "Failure" }
        },
        rows: jobs.iter().map(|job| (job.job_id.to_string(), cells(job, now))).collect(),
        actions: html! {
            input type="hidden" name="filter" value=(form.to_query(&[]));
            button type="submit" formaction="/jobs/cancel" { "Cancel selected" }
            button type="submit" formaction="/jobs/retry" { "Retry failed images of selected" }
        },
    };
    selectable_table(visitor, &list)
}

fn cells(job: &JobReport, now: OffsetDateTime) -> Markup {
    html! {
        td { (job_link(job.job_id)) }
        td { (status(&job.status)) }
        td.number { a href={ "/jobs?project=" (job.project_id) } { (job.project_id) } }
        td.number { (job.total) }
        td.number { (usd(job.cost_usd)) }
        td { (ago(job.created_at, now)) }
        td { @if let Some(code) = &job.error_code { code { (code) } } }
    }
}

/// What became of the form that led here.
fn done_text(query: &Query) -> Result<Option<String>, Problem> {
    let number = |name: &str| query.get(name, "a whole number", |text| text.parse::<u32>().ok());
    let (count, skipped) = (number("count")?.unwrap_or_default(), number("skipped")?.unwrap_or_default());
    let failed = number("failed")?.unwrap_or_default();
    query.get("done", "cancelled or retried", |done| match done {
        "cancelled" => Some(format!("Cancelled: {count}. Ended or cancelled before: {skipped}.")),
        "retried" => {
            let failed = if failed > 0 { format!(" Failed, try again: {failed}.") } else { String::new() };
            Some(format!("New jobs: {count}. Without images to make again: {skipped}.{failed}"))
        }
        _ => None,
    })
}

/// Cancels the selected jobs.
pub(super) async fn cancel_many(api: Api, visitor: Visitor, form: Form) -> Result<Response, Problem> {
    let result = api.cancel_jobs(visitor.caller, &selected_jobs(&form)?, None).await?;
    let cancelled = result.cancelled + result.remembered;
    Ok(back_to_list(&form, "cancelled", [cancelled, result.unchanged, 0]))
}

/// Makes the failed images of the selected jobs again.
pub(super) async fn retry_many(api: Api, visitor: Visitor, form: Form) -> Result<Response, Problem> {
    let (mut retried, mut skipped, mut failed) = (0, 0, 0);
    for job_id in selected_jobs(&form)? {
        match api.make_again(visitor.caller, job_id, Selection::Failed { include_refused: false }).await {
            Ok(job) if job.is_new => retried += 1,
            // One that fails does not hide what became of the others.
            Err(problem) if problem.status().is_server_error() => failed += 1,
            Ok(_) | Err(_) => skipped += 1,
        }
    }
    Ok(back_to_list(&form, "retried", [retried, skipped, failed]))
}

fn selected_jobs(form: &Form) -> Result<Vec<Uuid>, Problem> {
    let jobs = form.all("job").iter().map(|id| parse_job_id(id)).collect::<Result<Vec<_>, _>>()?;
    let problem = match jobs.len() {
        0 => "none is selected; select at least one job".to_owned(),
        count if count as u64 > PAGE_SIZE => format!("{count} are selected; at most {PAGE_SIZE}"),
        _ => return Ok(jobs),
    };
    Err(Problem::invalid_field("job", problem))
}

/// The list with the same filter.
fn back_to_list(form: &Form, done: &str, counts: [u64; 3]) -> Response {
    let known: Vec<&'static str> = FILTER.into_iter().chain(OTHERS).collect();
    let query = Query::parse(form.raw("filter"), &known).ok();
    let filter = query.and_then(|query| FilterForm::read(&query).ok()).unwrap_or_default();
    let [count, skipped, failed] = counts.map(|count| count.to_string());
    let query = filter.to_query(&[("done", done), ("count", &count), ("skipped", &skipped), ("failed", &failed)]);
    see_other(&format!("/jobs?{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_of_an_id_selects_a_range() {
        let range = id_range("0199F3a2-7").expect("a range");
        assert_eq!(range.start().to_string(), "0199f3a2-7000-0000-0000-000000000000");
        assert_eq!(range.end().to_string(), "0199f3a2-7fff-ffff-ffff-ffffffffffff");
        let id = "0199f3a2-7c1e-7b52-9f0e-2f6c1d9a4b10";
        assert_eq!(id_range(id).map(|range| range.start() == range.end()), Some(true));
        for wrong in ["", "-", "x", &format!("{id}0")] {
            assert_eq!(id_range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn filter_keeps_its_texts_and_names_what_is_wrong() {
        let query = |text: &str| Query::parse(Some(text), &FILTER).expect("a query");
        let form = FilterForm::read(&query("status=failed&project=7&description=A%20%26%20b&job=")).expect("a form");
        assert!(form.is_valid());
        assert_eq!(form.to_query(&[("cursor", "x")]), "status=failed&project=7&description=A+%26+b&cursor=x");
        let form = FilterForm::read(&query("status=done&project=0&failure=oops&job=xyz")).expect("a form");
        let errors: Vec<bool> = form.errors.iter().map(Option::is_some).collect();
        assert_eq!(errors, [true, true, true, true, false]);
        assert!(form.errors[3].as_deref().is_some_and(|error| error.contains("\"xyz\"")));
    }
}
