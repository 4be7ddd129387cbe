//! The dead letters: look at them, replay and discard them.

use axum::extract::RawQuery;
use axum::response::Response;
use broker::DeadLetter;
use maud::{Markup, html};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::components::{Selectable, form_token, job_link, notice, selectable_table, time};
use super::form::Form;
use super::json_text::with_line_breaks;
use super::layout::{Tab, page};
use super::see_other;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::dead_letters::dead_letter_id;
use crate::api::problem::{Problem, ProblemCode};
use crate::api::request::{NoQuery, Query, UrlPath};

/// The most bytes of a body that are shown.
const MAX_SHOWN_BYTES: usize = 256 * 1024;

/// Lists the dead letters, oldest first: at most 1,000 of them.
pub(super) async fn list(api: Api, visitor: Visitor, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["done", "count"])?;
    let count = query.get("count", "a whole number", |text| text.parse::<u32>().ok())?.unwrap_or_default();
    let done = query.get("done", "replayed or discarded", |done| match done {
        "replayed" => Some(format!("Published again: {count}.")),
        "discarded" => Some(format!("Deleted: {count}.")),
        _ => None,
    })?;
    let (rows, has_more) = api
        .with_dead_letters(async |held, _| {
            let rows = held.letters().iter().map(|letter| (letter.id.clone(), cells(letter)));
            Ok((rows.collect::<Vec<_>>(), held.has_more()))
        })
        .await?;
    let content = html! {
        h1 { "Dead letters" }
        @if let Some(done) = done { (notice(&done)) }
        @if rows.is_empty() {
            p.note { "There are none on the queue. Those that another page or command is reading are not shown." }
        } @else {
            @if has_more { p.notice.warning { "There are more: only the oldest ones are shown." } }
            (letter_list(&visitor, rows))
        }
    };
    Ok(page(&visitor, "Dead letters", Tab::DeadLetters, &content))
}

fn letter_list(visitor: &Visitor, rows: Vec<(String, Markup)>) -> Markup {
    let list = Selectable {
        noun: "dead letter",
        field: "id",
        head: html! { th { "Id" } th { "Reason" } th { "Rejected" } th { "Job" } th.number { "Bytes" } },
        rows,
        actions: html! {
            button type="submit" formaction="/dead-letters/replay" { "Replay selected" }
            button.danger type="submit" formaction="/dead-letters/discard" { "Discard selected" }
        },
    };
    selectable_table(visitor, &list)
}

fn cells(letter: &DeadLetter) -> Markup {
    html! {
        td { a.id href={ "/dead-letters/" (letter.id) } { (letter.id) } }
        td.text { (letter.reason) }
        td { (rejected_at(letter)) }
        td { @if let Some(job_id) = letter.job_id { (job_link(job_id)) } }
        td.number { (letter.body.len()) }
    }
}

/// When a message was dead-lettered; other clients may write another form of time.
fn rejected_at(letter: &DeadLetter) -> Markup {
    let text = letter.rejected_at.as_deref().unwrap_or("not known");
    OffsetDateTime::parse(text, &Rfc3339).map_or_else(|_| html! { (text) }, time)
}

/// Shows one dead letter with its headers and its body.
pub(super) async fn show(
    api: Api,
    visitor: Visitor,
    UrlPath(id): UrlPath<String>,
    _query: NoQuery,
) -> Result<Response, Problem> {
    let id = dead_letter_id(id)?;
    let found = api
        .with_dead_letters(async |held, _| {
            Ok(held.letters().iter().find(|letter| letter.id == id).map(|letter| details(letter, &visitor)))
        })
        .await?;
    let content =
        found.ok_or_else(|| Problem::new(ProblemCode::NotFound, format!("no dead letter has the id {id}")))?;
    Ok(page(&visitor, &format!("Dead letter {id}"), Tab::DeadLetters, &content))
}

fn details(letter: &DeadLetter, visitor: &Visitor) -> Markup {
    let shown = &letter.body[..letter.body.len().min(MAX_SHOWN_BYTES)];
    html! {
        h1 { "Dead letter " code.id { (letter.id) } }
        dl.facts {
            div.wide { dt { "Reason" } dd { (letter.reason) } }
            div { dt { "Rejected" } dd { (rejected_at(letter)) } }
            @if let Some(job_id) = letter.job_id { div { dt { "Job" } dd { (job_link(job_id)) } } }
            div { dt { "Size" } dd { (letter.body.len()) " bytes" } }
        }
        @if visitor.may_change() {
            form.actions method="post" {
                (form_token(&visitor.browser))
                input type="hidden" name="id" value=(letter.id);
                button type="submit" formaction="/dead-letters/replay" { "Replay" }
                button.danger type="submit" formaction="/dead-letters/discard" { "Discard" }
            }
        }
        section.card {
            h2 { "Headers" }
            dl.facts { @for (name, value) in letter.headers() { div.wide { dt { code { (name) } } dd { (value) } } } }
        }
        section.card {
            h2 { "Body" }
            pre tabindex="0" { (with_line_breaks(&String::from_utf8_lossy(shown))) }
            @if shown.len() < letter.body.len() { p.note { "Only the first " (MAX_SHOWN_BYTES) " bytes are shown." } }
        }
    }
}

/// Publishes the selected dead letters again.
pub(super) async fn replay(api: Api, visitor: Visitor, form: Form) -> Result<Response, Problem> {
    let replayed = api.replay(visitor.caller, &selected(&form)?).await?;
    Ok(see_other(&format!("/dead-letters?done=replayed&count={replayed}")))
}

/// Deletes the selected dead letters.
pub(super) async fn discard(api: Api, visitor: Visitor, form: Form) -> Result<Response, Problem> {
    let discarded = api.discard(visitor.caller, &selected(&form)?).await?;
    Ok(see_other(&format!("/dead-letters?done=discarded&count={discarded}")))
}

fn selected(form: &Form) -> Result<Vec<String>, Problem> {
    let ids = form.all("id").into_iter().map(dead_letter_id).collect::<Result<Vec<_>, _>>()?;
    if ids.is_empty() {
        return Err(Problem::invalid_field("id", "none is selected; select at least one dead letter"));
    }
    Ok(ids)
}
