//! The form for a new job: checks what was entered, and estimates what it would cost before it costs anything.

mod estimate;

use axum::http::StatusCode;
use axum::response::Response;
use domain::command::{Command, InvalidCommand};
use domain::rules::Rules;
use maud::{Markup, html};
use uuid::Uuid;

use super::command_fields::{Entered, command_json, number_field, option_fields, text_area};
use super::components::form_token;
use super::form::{Form, LARGE};
use super::layout::{Tab, page_with_status};
use super::see_other;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::problem::{Problem, ProblemCode};
use crate::api::request::NoQuery;
use crate::estimate::Estimate;

/// Shows the empty form. The id of the job is part of it, so that sending it twice submits one job.
pub(super) async fn show(api: Api, visitor: Visitor, _query: NoQuery) -> Result<Response, Problem> {
    if !visitor.may_change() {
        return Err(Problem::new(ProblemCode::Forbidden, "the token is read-only"));
    }
    let entered = Entered::of_new_job();
    Ok(form_page(StatusCode::OK, &api, &visitor, &entered, &[], None))
}

/// Shows the form again, with an estimate of what was entered.
pub(super) async fn estimate(api: Api, visitor: Visitor, form: Form<LARGE>) -> Result<Response, Problem> {
    let entered = Entered::from_form(&form);
    Ok(match parse(&entered, &api.rules) {
        Ok(command) => {
            let estimate = api.estimate(&command).await?;
            form_page(StatusCode::OK, &api, &visitor, &entered, &[], Some(&estimate))
        }
        Err(violations) => form_page(StatusCode::UNPROCESSABLE_ENTITY, &api, &visitor, &entered, &violations, None),
    })
}

/// Submits the job, or shows the form again with what is wrong.
pub(super) async fn submit(api: Api, visitor: Visitor, form: Form<LARGE>) -> Result<Response, Problem> {
    let mut entered = Entered::from_form(&form);
    let command = match parse(&entered, &api.rules) {
        Ok(command) => command,
        Err(violations) => {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Ok(form_page(status, &api, &visitor, &entered, &violations, None));
        }
    };
    match api.submit(visitor.caller, &command, None).await {
        Ok(submitted) => {
            let done = if submitted.is_new { "submitted" } else { "known" };
            Ok(see_other(&format!("/jobs/{}?done={done}", command.job_id)))
        }
        // What was entered is kept.
        Err(problem) => {
            let mut violations = vec![problem.detail().to_owned()];
            if problem.code() == ProblemCode::JobIdConflict {
                violations = vec![format!(
                    "this form was sent before, as job {}; send it again for another job",
                    command.job_id
                )];
                entered.job_id = Uuid::now_v7().to_string();
            }
            Ok(form_page(problem.status(), &api, &visitor, &entered, &violations, None))
        }
    }
}

/// The command of what was entered, or what is not allowed in it.
fn parse(entered: &Entered, rules: &Rules) -> Result<Command, Vec<String>> {
    let job_id = Uuid::try_parse(&entered.job_id).map_err(|_| vec!["job_id: not a UUID".to_owned()])?;
    let body = command_json(entered)?;
    Command::parse_with_id(body.to_string().as_bytes(), job_id, rules)
        .map_err(|InvalidCommand { violations, .. }| violations)
}

fn form_page(
    status: StatusCode,
    api: &Api,
    visitor: &Visitor,
    entered: &Entered,
    violations: &[String],
    estimate: Option<&Estimate>,
) -> Response {
    let content = html! {
        h1 { "New job" }
        @if !violations.is_empty() {
            div.notice.error role="alert" {
                "The job was not submitted:"
                ul { @for violation in violations { li { (violation) } } }
            }
        }
        // With a script, each change asks for an estimate.
        form #new-job method="post" action="/jobs/new" hx-post="/jobs/estimate"
            hx-trigger="input changed delay:600ms, change" hx-target="#estimate" hx-select="#estimate" hx-swap="outerHTML" hx-sync="this:queue last" {
            (form_token(&visitor.browser))
            input type="hidden" name="job_id" value=(entered.job_id);
            div.card { (main_fields(entered, violations)) }
            div.card {
                h2 { "Options" }
                p.hint { "An empty field means the default of the project, or of the workers." }
                (option_fields(entered, violations, &api.rules))
            }
            div.card {
                (estimate_part(estimate, violations))
                p.actions {
                    button type="submit" formaction="/jobs/estimate" { "Estimate" }
                    button.primary type="submit" { "Submit job" }
                }
            }
        }
    };
    page_with_status(status, visitor, "New job", Tab::NewJob, &content)
}

fn main_fields(entered: &Entered, violations: &[String]) -> Markup {
    html! {
        h2 { "Images" }
        (number_field("project_id", "Project", "a whole number of at least 1", entered, violations))
        (text_area("image_descriptions", "Descriptions", "one line for each image: 1 to 200 lines of 1 to 2,000 characters", 8, entered, violations))
    }
}

fn estimate_part(estimate: Option<&Estimate>, violations: &[String]) -> Markup {
    html! {
        // The outer part stays, so that a screen reader announces what changes in it.
        div aria-live="polite" { div #estimate {
            h2 { "Estimate" }
            @match estimate {
                Some(estimate) => (estimate::render(estimate)),
                None if violations.is_empty() => p.hint { "What the job would cost and how long it would take." },
                None => {
                    p.hint { "Not yet:" }
                    ul.field-error { @for violation in violations { li { (violation) } } }
                }
            }
        } }
    }
}
