//! The account: gate, money, styles of projects, and who changed what.

use axum::extract::RawQuery;
use axum::http::StatusCode;
use axum::response::Response;
use domain::money::MicroUsd;
use domain::rules::MAX_REASON_CHARS;
use domain::style::{InvalidStyle, Style};
use domain::upscaler::Upscaler;
use maud::{Markup, html};
use stability_client::Engine;
use store::{AuditEntry, DaySpending};
use time::{Date, Duration, OffsetDateTime};

use super::chart::bars;
use super::command_fields::{Entered, number_field, style_fields, style_json};
use super::components::{form_token, job_link, notice, table, time, usd};
use super::form::Form;
use super::layout::{Tab, page_with_status};
use super::see_other;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::account::Account;
use crate::api::problem::Problem;
use crate::api::request::{Query, check_reason};
use crate::cost_policy::{CostPolicy, credits_to_usd};

/// Days whose costs are shown.
const DAYS: i64 = 30;
/// Maximum number of styles and of changes that are listed.
const MAX_STYLES: u64 = 200;
const MAX_CHANGES: u64 = 100;

/// Shows the account.
pub(super) async fn show(api: Api, visitor: Visitor, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["done"])?;
    let done = query.get("done", "what became of a form", done_text)?;
    account_page(StatusCode::OK, &api, &visitor, done, &Entered::default(), &[]).await
}

fn done_text(done: &str) -> Option<&'static str> {
    match done {
        "paused" => Some("The workers are paused: within five seconds none takes commands or pays for images."),
        "resumed" => Some("The workers are not paused any more."),
        "style_set" => Some("The style is set for later jobs of the project."),
        "style_cleared" => Some("The project has no style any more."),
        _ => None,
    }
}

async fn account_page(
    status: StatusCode,
    api: &Api,
    visitor: &Visitor,
    done: Option<&str>,
    entered: &Entered,
    violations: &[String],
) -> Result<Response, Problem> {
    let account = api.read_account().await?;
    let today = OffsetDateTime::now_utc().date();
    let spending = api.store.read_daily_spending(today - Duration::days(DAYS - 1)).await?;
    let styles = api.store.list_project_styles(MAX_STYLES).await?;
    let changes = api.store.read_audit(MAX_CHANGES).await?;
    let content = html! {
        h1 { "Account" }
        @if let Some(done) = done { (notice(done)) }
        (gate(&account, visitor))
        div.columns {
            (money(&account))
            (costs(&spending, today))
            (prices(api))
        }
        (styles_part(api, visitor, &styles, entered, violations))
        (audit(&changes))
    };
    Ok(page_with_status(status, visitor, "Account", Tab::Account, &content))
}

fn gate(account: &Account, visitor: &Visitor) -> Markup {
    let is_paused = account.gate.reasons.iter().any(|reason| reason.code == "paused");
    html! {
        section.card {
            h2 { "Account gate" }
            @if account.gate.is_open {
                p { span.status.completed { "open" } " Workers take commands." }
            } @else {
                p { span.status.failed { "closed" } " Commands wait on the queue." }
                ul { @for reason in &account.gate.reasons { li { code { (reason.code) } ": " (reason.message) } } }
            }
            @if visitor.may_change() {
                div.actions {
                    form method="post" action="/account/pause" {
                        (form_token(&visitor.browser))
                        label.visually-hidden for="reason" { "Reason" }
                        input #reason name="reason" placeholder="reason, optional" maxlength=(MAX_REASON_CHARS);
                        button.danger type="submit" { @if is_paused { "Change the reason" } @else { "Pause all workers" } }
                    }
                    @if is_paused {
                        form method="post" action="/account/resume" {
                            (form_token(&visitor.browser))
                            button.primary type="submit" { "Resume" }
                        }
                    }
                }
            }
        }
    }
}

fn money(account: &Account) -> Markup {
    let known = |amount: Option<f64>| amount.map_or_else(|| "not known".to_owned(), usd);
    html! {
        section.card {
            h2 { "Balance and budget" }
            dl.facts {
                div {
                    dt { "Credits" }
                    dd {
                        @match account.credits {
                            Some(credits) => { (format!("{credits:.1}")) " (" (usd(credits_to_usd(credits))) ")" }
                            None => "not known"
                        }
                    }
                }
                div { dt { "Spent today (UTC)" } dd { (known(account.budget.spent_usd)) } }
                div { dt { "Daily budget" } dd { (account.budget.limit_usd.map_or_else(|| "none".to_owned(), usd)) } }
                @if account.budget.limit_usd.is_some() { div { dt { "Left today" } dd { (known(account.budget.left_usd)) } } }
                div { dt { "Quota" } dd { (account.quota.requests_per_minute) " requests a minute" } }
            }
        }
    }
}

fn costs(spending: &[DaySpending], today: Date) -> Markup {
    let days: Vec<(String, f64, i64)> = (0..DAYS)
        .map(|number| {
            let day = (today - Duration::days(DAYS - 1 - number)).to_string();
            let found = spending.iter().find(|spent| spent.day == day);
            let (micro_usd, requests) = found.map_or((0, 0), |spent| (spent.micro_usd, spent.requests));
            (day, MicroUsd(micro_usd).usd(), requests)
        })
        .collect();
    let values: Vec<f64> = days.iter().map(|(_, cost, _)| *cost).collect();
    let titles: Vec<String> =
        days.iter().map(|(day, cost, requests)| format!("{day}: {}, requests: {requests}", usd(*cost))).collect();
    html! {
        section.card {
            h2 { "Costs by day" }
            (bars(&values, &titles, "costs of each of the last 30 days"))
            p.note { (usd(values.iter().sum())) " in 30 days, until today" }
            details {
                summary { "As a table" }
                table {
                    thead { tr { th { "Day (UTC)" } th.number { "Requests" } th.number { "Cost" } } }
                    tbody {
                        @for (day, cost, requests) in days.iter().rev().filter(|(_, _, requests)| *requests > 0) {
                            tr { td { (day) } td.number { (requests) } td.number { (usd(*cost)) } }
                        }
                    }
                }
            }
        }
    }
}

fn prices(api: &Api) -> Markup {
    let policy = CostPolicy::new(&api.settings);
    let prices = |engine: Engine| policy.request_prices(engine, Upscaler::Fast);
    let head = html! { th { "Engine" } th.number { "Image" } th.number { "With fast upscaler" } };
    let rows = html! {
        @for engine in Engine::ALL {
            tr {
                td { (engine.id()) @if *engine == api.settings.stability.engine { " (default)" } }
                td.number { (usd(prices(*engine).generation.usd())) }
                td.number {
                    @if api.rules.engines_without_fast_upscaler.contains(&engine.id()) { "–" } @else { (usd(prices(*engine).per_image().usd())) }
                }
            }
        }
    };
    html! { section.card { h2 { "Prices" } (table("prices", &head, &rows)) } }
}

fn styles_part(
    api: &Api,
    visitor: &Visitor,
    styles: &[(i64, Style)],
    entered: &Entered,
    violations: &[String],
) -> Markup {
    let head = html! {
        th.number { "Project" } th { "Style" } @if visitor.may_change() { th { span.visually-hidden { "Change" } } }
    };
    let rows = html! { @for (project_id, style) in styles { (style_row(visitor, *project_id, style)) } };
    html! {
        section.card #styles {
            h2 { "Styles of projects" }
            @if styles.is_empty() {
                p.note { "No project has a style: its jobs use the defaults." }
            } @else {
                (table("styles", &head, &rows))
            }
            @if styles.len() as u64 == MAX_STYLES { p.note { "Only the first " (MAX_STYLES) " projects are listed." } }
            @if visitor.may_change() {
                details open[!violations.is_empty()] {
                    summary { "Set the style of a project" }
                    form method="post" action="/account/style" {
                        (form_token(&visitor.browser))
                        @if !violations.is_empty() {
                            ul.notice.error role="alert" { @for violation in violations { li { (violation) } } }
                        }
                        (number_field("project_id", "Project", "its earlier style is replaced", entered, violations))
                        (style_fields(entered, violations, &api.rules))
                        button.primary type="submit" { "Set style" }
                    }
                }
            }
        }
    }
}

fn style_row(visitor: &Visitor, project_id: i64, style: &Style) -> Markup {
    html! {
        tr {
            td.number { (project_id) }
            td { (style_text(style)) }
            @if visitor.may_change() {
                td {
                    form method="post" action="/account/style/clear" {
                        (form_token(&visitor.browser))
                        input type="hidden" name="project_id" value=(project_id);
                        button type="submit" aria-label={ "clear the style of project " (project_id) } { "Clear" }
                    }
                }
            }
        }
    }
}

fn style_text(style: &Style) -> Markup {
    let value = serde_json::to_value(style).unwrap_or_default();
    html! { @for (name, value) in value.as_object().into_iter().flatten() { code { (name) ": " (value) } " " } }
}

fn audit(changes: &[(OffsetDateTime, AuditEntry)]) -> Markup {
    let head = html! { th { "Time" } th { "Action" } th { "Job" } th { "Detail" } th { "Role" } th { "Address" } };
    let rows = html! {
        @for (at, entry) in changes {
            tr {
                td { (time(*at)) }
                td { (entry.action) }
                td { @if let Some(job_id) = entry.job_id { (job_link(job_id)) } }
                td.text { (entry.detail.as_deref().unwrap_or_default()) }
                td { (entry.role) }
                td { (entry.address) }
            }
        }
    };
    html! {
        section.card {
            h2 { "Changes" }
            @if changes.is_empty() {
                p.note { "Nothing was changed over the API or these pages." }
            } @else {
                (table("changes", &head, &rows))
                p.note { "The newest " (MAX_CHANGES) " at most." }
            }
        }
    }
}

/// Pauses all workers.
pub(super) async fn pause(api: Api, visitor: Visitor, form: Form) -> Result<Response, Problem> {
    let reason = check_reason(form.text("reason"))?;
    api.pause(visitor.caller, reason.as_deref()).await?;
    api.gate.refresh().await;
    Ok(see_other("/account?done=paused"))
}

/// Ends the pause.
pub(super) async fn resume(api: Api, visitor: Visitor, _form: Form) -> Result<Response, Problem> {
    api.resume(visitor.caller).await?;
    api.gate.refresh().await;
    Ok(see_other("/account?done=resumed"))
}

/// Sets the style of a project.
pub(super) async fn set_style(api: Api, visitor: Visitor, form: Form) -> Result<Response, Problem> {
    let entered = Entered::from_form(&form);
    let project_id = parse_project_id(&form);
    let style = style_json(&entered)
        .and_then(|json| Style::parse(json, &api.rules).map_err(|InvalidStyle(violations)| violations))
        .and_then(|style| {
            let is_empty = style == Style::default();
            if is_empty { Err(vec!["style: empty; set at least one field".to_owned()]) } else { Ok(style) }
        });
    match (project_id, style) {
        (Ok(project_id), Ok(style)) => {
            api.set_style(visitor.caller, project_id, &style).await?;
            Ok(see_other("/account?done=style_set#styles"))
        }
        (project_id, style) => {
            let violations: Vec<String> =
                project_id.err().into_iter().chain(style.err().into_iter().flatten()).collect();
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            account_page(status, &api, &visitor, None, &entered, &violations).await
        }
    }
}

/// Removes the style of a project.
pub(super) async fn clear_style(api: Api, visitor: Visitor, form: Form) -> Result<Response, Problem> {
    let project_id = parse_project_id(&form).map_err(|violation| Problem::invalid(&[violation]))?;
    api.clear_style(visitor.caller, project_id).await?;
    Ok(see_other("/account?done=style_cleared#styles"))
}

fn parse_project_id(form: &Form) -> Result<i64, String> {
    let text = form.text("project_id").unwrap_or_default();
    let shown: String = text.chars().take(60).collect();
    let allowed = || format!("project_id: {shown:?} is not allowed; a whole number of at least 1");
    text.parse::<i64>().ok().filter(|id| *id > 0).ok_or_else(allowed)
}
