//! Parts that several pages use.

use domain::state::JobState;
use maud::{Markup, html};
use time::format_description::FormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::form::TOKEN_FIELD;
use super::visitor::{Browser, Visitor};
use crate::cost_policy::format_usd;

/// Width of the copies that are shown in lists, in pixels.
pub(super) const THUMBNAIL_WIDTH: u32 = 480;

/// The hidden field that shows that a form comes from a page that this browser has loaded.
pub(super) fn form_token(browser: &Browser) -> Markup {
    html! { input type="hidden" name=(TOKEN_FIELD) value=(browser.form_token()); }
}

/// The status of a job or an image.
pub(super) fn status(status: &str) -> Markup {
    let class = match status {
        "completed" | "running" | "waiting" | "pending" | "failed" => status,
        _ => "other",
    };
    html! { span.status.(class) { (status) } }
}

/// A time as a date and time of day in UTC.
pub(super) fn time(at: OffsetDateTime) -> Markup {
    const FORMAT: &[FormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let utc = at.to_offset(UtcOffset::UTC);
    let text = utc.format(FORMAT).unwrap_or_default();
    html! { time datetime=(rfc3339(at)) { (text) " UTC" } }
}

/// A time in UTC, to the second.
fn rfc3339(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

/// A time as how long ago it was.
pub(super) fn ago(at: OffsetDateTime, now: OffsetDateTime) -> Markup {
    let exact = rfc3339(at);
    html! { time datetime=(exact) title=(exact) { (duration((now - at).as_seconds_f64())) " ago" } }
}

/// A duration in its largest unit: `42 s`, `3 min`, `5 h`, `12 d`.
pub(super) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    let (value, unit) = match seconds {
        s if s < 120.0 => (s, "s"),
        s if s < 7_200.0 => (s / 60.0, "min"),
        s if s < 172_800.0 => (s / 3_600.0, "h"),
        s => (s / 86_400.0, "d"),
    };
    format!("{value:.0} {unit}")
}

/// An amount in US dollars.
pub(super) fn usd(amount: f64) -> String {
    format!("USD {}", format_usd(amount))
}

/// A number of bytes in megabytes.
pub(super) fn megabytes(bytes: i64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a rounded number for display")]
    let megabytes = bytes as f64 / 1e6;
    format!("{megabytes:.2} MB")
}

/// A link to a job by the end of its id, which differs also among ids of the same time.
pub(super) fn job_link(job_id: Uuid) -> Markup {
    let id = job_id.to_string();
    html! { a.id href={ "/jobs/" (id) } title=(id) { "…" (&id[24..]) } }
}

/// The address of an image, or of a copy of this width.
pub(super) fn image_path(job_id: Uuid, index: i32, width: Option<u32>) -> String {
    let width = width.map(|width| format!("?width={width}")).unwrap_or_default();
    format!("/v1/jobs/{job_id}/images/{index}{width}")
}

/// Whether a job with this status may still change.
pub(super) fn is_open(status: &str) -> bool {
    [JobState::Waiting, JobState::Running].iter().any(|state| state.as_str() == status)
}

/// A table that scrolls by itself where it is wider than the page. `label` says what it lists.
pub(super) fn table(label: &str, head: &Markup, rows: &Markup) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr { (head) } }
                tbody { (rows) }
            }
        }
    }
}

/// What [`selectable_table`] lists.
pub(super) struct Selectable {
    /// What one row is.
    pub(super) noun: &'static str,
    /// Name of the form's field with the ids of the selected rows.
    pub(super) field: &'static str,
    pub(super) head: Markup,
    /// The id and the cells of each row.
    pub(super) rows: Vec<(String, Markup)>,
    /// Further fields of the form, and its buttons.
    pub(super) actions: Markup,
}

/// A table whose rows can be selected for the actions of its form; for a visitor who may change nothing, the table alone.
pub(super) fn selectable_table(visitor: &Visitor, list: &Selectable) -> Markup {
    let Selectable { noun, field, head, rows, actions } = list;
    let has_boxes = visitor.may_change();
    let head = html! {
        @if has_boxes { th { input type="checkbox" data-select-all=(field) hidden aria-label={ "select all " (noun) "s" }; } }
        (head)
    };
    let rows = html! {
        @for (id, cells) in rows {
            tr {
                @if has_boxes { td { input type="checkbox" name=(field) value=(id) aria-label={ "select " (noun) " " (id) }; } }
                (cells)
            }
        }
    };
    let table = html! { div.card { (table(&format!("{noun}s"), &head, &rows)) } };
    if !has_boxes {
        return table;
    }
    html! { form method="post" { (form_token(&visitor.browser)) (table) p.actions { (actions) } } }
}

/// The message of a form that was sent.
pub(super) fn notice(text: &str) -> Markup {
    html! { p.notice.done role="status" { (text) } }
}

/// The message of a field that is not allowed.
pub(super) fn field_error(id: &str, error: Option<&str>) -> Markup {
    html! { @if let Some(error) = error { p.field-error id={ (id) "-error" } { (error) } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_has_one_unit() {
        for (seconds, expected) in
            [(-3.0, "0 s"), (119.4, "119 s"), (120.0, "2 min"), (7_200.0, "2 h"), (172_800.0, "2 d")]
        {
            assert_eq!(duration(seconds), expected);
        }
    }
}
