//! One picture: full size, with all that is known of it.

use axum::extract::RawQuery;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;
use store::{ImageCopy, ImageDetails};
use uuid::Uuid;

use super::components::{form_token, image_path, job_link, megabytes, status, time, usd};
use super::form::Form;
use super::layout::{Tab, page};
use super::remedies::remedy;
use super::see_other;
use super::visitor::Visitor;
use crate::api::Api;
use crate::api::images::parse_image_path;
use crate::api::problem::{Problem, ProblemCode};
use crate::api::request::{Query, UrlPath, not_allowed};
use crate::retry::Selection;

/// Shows a picture.
pub(super) async fn show(
    api: Api,
    visitor: Visitor,
    UrlPath((job_id, index)): UrlPath<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(query.as_deref(), &[])?;
    let (job_id, index) = parse_image_path(&job_id, &index)?;
    let not_found = || Problem::new(ProblemCode::NotFound, format!("job {job_id} has no image {index}"));
    let details = api.store.read_image_details(job_id, index).await?.ok_or_else(not_found)?;
    let image = &details.image;
    let description = image.metadata["description"].as_str().unwrap_or_default();
    let is_completed = image.status == "completed";
    let content = html! {
        h1 { "Image " (index) " of job " (job_link(job_id)) }
        @if is_completed {
            figure.full {
                a href=(image_path(job_id, image.index, None)) {
                    img src=(image_path(job_id, image.index, None)) alt=(description)
                        width=[details.dimensions.map(|(width, _)| width)] height=[details.dimensions.map(|(_, height)| height)];
                }
                figcaption { (description) }
            }
        } @else {
            p { (description) }
        }
        @if let Some(code) = &image.error_code {
            div.notice.error {
                code { (code) } ": " (image.error_message.as_deref().unwrap_or_default())
                p { (remedy(code)) }
            }
        }
        @if visitor.may_change() && is_completed && details.job_has_ended { (redo_form(&visitor, job_id, index)) }
        (facts(&details))
        (copies(&details))
    };
    Ok(page(&visitor, &format!("Image {index}"), Tab::Jobs, &content))
}

fn redo_form(visitor: &Visitor, job_id: Uuid, index: u32) -> Markup {
    html! {
        form.actions method="post" action={ "/jobs/" (job_id) "/images/" (index) "/redo" } {
            (form_token(&visitor.browser))
            label for="seed" { "Seed" }
            input #seed name="seed" inputmode="numeric" size="12" placeholder="chosen if empty";
            button type="submit" { "Make it again with another seed" }
        }
    }
}

fn facts(details: &ImageDetails) -> Markup {
    let image = &details.image;
    let metadata = image.metadata.as_object();
    html! {
        dl.facts {
            div { dt { "Status" } dd { (status(&image.status)) } }
            div { dt { "Project" } dd { a href={ "/jobs?project=" (details.project_id) } { (details.project_id) } } }
            div { dt { "Requests" } dd { (image.requests) } }
            div { dt { "Cost" } dd { (usd(image.cost_usd)) } }
            div { dt { "Last change" } dd { (time(image.updated_at)) } }
            @if let Some((width, height)) = details.dimensions { div { dt { "Size" } dd { (width) " x " (height) } } }
            @if let Some(format) = &details.format { div { dt { "Format" } dd { (format) } } }
            @if let Some(size) = image.size_bytes { div { dt { "File size" } dd { (megabytes(size)) } } }
            @if let Some(path) = &image.file_path { div { dt { "File" } dd { code { (path) } } } }
            @if let Some(sha256) = &details.sha256 { div { dt { "SHA-256" } dd { code.id { (sha256) } } } }
            @if let Some(index) = image.original_index { div { dt { "Index in the first job" } dd { (index) } } }
            @for (name, value) in metadata.into_iter().flatten() {
                @if name != "index" { div { dt { code { (name) } } dd { (text_of(value)) } } }
            }
        }
    }
}

fn copies(details: &ImageDetails) -> Markup {
    html! {
        section.card {
            h2 { "Same picture" }
            @if let Some(original) = &details.original { p { "Generated for " (same_picture(original)) } }
            @if details.copies.is_empty() {
                p.note { "No other job has used it from the cache." }
            } @else {
                p { "Used from the cache by:" }
                ul { @for copy in &details.copies { li { (same_picture(copy)) } } }
            }
        }
    }
}

fn same_picture(image: &ImageCopy) -> Markup {
    html! {
        "job " (job_link(image.job_id)) " of project " (image.project_id) ", "
        a href={ "/jobs/" (image.job_id) "/images/" (image.index) } { "image " (image.index) } ", " (time(image.updated_at))
    }
}

/// A value of the metadata as text.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(texts) => texts.iter().map(text_of).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Makes a picture again with another seed.
pub(super) async fn redo(
    api: Api,
    visitor: Visitor,
    UrlPath((job_id, index)): UrlPath<(String, String)>,
    form: Form,
) -> Result<Response, Problem> {
    let (job_id, index) = parse_image_path(&job_id, &index)?;
    let wrong = |text: &str| not_allowed("seed", text, "a whole number of at least 1");
    let seed =
        form.text("seed").map(|text| text.parse::<u32>().ok().filter(|seed| *seed > 0).ok_or_else(|| wrong(text)));
    let job = api.make_again(visitor.caller, job_id, Selection::Image { index, seed: seed.transpose()? }).await?;
    Ok(see_other(&format!("/jobs/{}?done=retry", job.job_id)))
}
