//! The fields of a command in a form, also those of a style.

use domain::rules::{MAX_CONCURRENT, Rules};
use maud::{Markup, html};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::components::field_error;
use super::form::Form;

/// Fields with a number.
const NUMBERS: [&str; 6] = ["max_concurrent", "cfg_scale", "steps", "seed", "min_success_rate", "max_cost_usd"];
/// Fields with one text.
const TEXTS: [&str; 6] = ["engine", "upscaler", "style_preset", "negative_prompt", "cache", "expires_at"];
/// Fields that can say that there is none, other than by an empty field.
const CLEARABLE: [&str; 2] = ["style_modifiers", "negative_prompt"];

/// What was entered in a form: the text of each field.
#[derive(Default)]
pub(super) struct Entered {
    pub(super) job_id: String,
    texts: Map<String, Value>,
}

impl Entered {
    /// Nothing, for a new job.
    pub(super) fn of_new_job() -> Self {
        Self { job_id: Uuid::now_v7().to_string(), ..Self::default() }
    }

    pub(super) fn from_form<const LIMIT: usize>(form: &Form<LIMIT>) -> Self {
        let names = ["project_id", "image_descriptions", "style_modifiers"].into_iter().chain(NUMBERS).chain(TEXTS);
        let mut texts: Map<String, Value> =
            names.filter_map(|name| Some((name.to_owned(), form.text(name)?.into()))).collect();
        for name in CLEARABLE.map(no_field) {
            if form.is_checked(&name) {
                texts.insert(name, "on".into());
            }
        }
        Self { job_id: form.text("job_id").unwrap_or_default().to_owned(), texts }
    }

    /// The text of a field; empty if there is none.
    fn text(&self, name: &str) -> &str {
        self.texts.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn lines(&self, name: &str) -> Vec<&str> {
        self.text(name).lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    }
}

/// Name of the checkbox that says that there is none.
fn no_field(name: &str) -> String {
    format!("no_{name}")
}

/// The command of what was entered, without its id. What is allowed is checked when it is parsed.
///
/// # Errors
///
/// What is not a number.
pub(super) fn command_json(entered: &Entered) -> Result<Value, Vec<String>> {
    let mut command = Map::new();
    let mut violations = Vec::new();
    if let Some(project_id) = number(entered, "project_id", "project_id", &mut violations) {
        command.insert("project_id".to_owned(), project_id);
    }
    command.insert("image_descriptions".to_owned(), json!(entered.lines("image_descriptions")));
    command.insert("config".to_owned(), Value::Object(config(entered, "config.", &mut violations)));
    if violations.is_empty() { Ok(command.into()) } else { Err(violations) }
}

/// The style of what was entered.
///
/// # Errors
///
/// What is not a number.
pub(super) fn style_json(entered: &Entered) -> Result<Value, Vec<String>> {
    let mut violations = Vec::new();
    let style = config(entered, "", &mut violations);
    if violations.is_empty() { Ok(style.into()) } else { Err(violations) }
}

/// The fields of the config that are not empty. `path` begins the names in violations.
fn config(entered: &Entered, path: &str, violations: &mut Vec<String>) -> Map<String, Value> {
    let mut config = Map::new();
    for name in NUMBERS {
        if let Some(value) = number(entered, name, &format!("{path}{name}"), violations) {
            config.insert(name.to_owned(), value);
        }
    }
    for name in TEXTS.into_iter().filter(|name| !entered.text(name).is_empty()) {
        let text = entered.text(name);
        // Browsers send a local time; the field says that it is in UTC.
        let is_local =
            name == "expires_at" && !text.ends_with('Z') && !text.get(10..).unwrap_or_default().contains(['+', '-']);
        let seconds = if text.len() == 16 { ":00" } else { "" };
        config.insert(name.to_owned(), if is_local { format!("{text}{seconds}Z").into() } else { text.into() });
    }
    let modifiers = entered.lines("style_modifiers");
    if !modifiers.is_empty() || entered.texts.contains_key(&no_field("style_modifiers")) {
        config.insert("style_modifiers".to_owned(), json!(modifiers));
    }
    if entered.texts.contains_key(&no_field("negative_prompt")) {
        config.entry("negative_prompt").or_insert_with(|| "".into());
    }
    config
}

fn number(entered: &Entered, name: &str, path: &str, violations: &mut Vec<String>) -> Option<Value> {
    let text = Some(entered.text(name)).filter(|text| !text.is_empty())?;
    let parsed = serde_json::from_str::<Value>(text).ok().filter(Value::is_number);
    if parsed.is_none() {
        let shown: String = text.chars().take(60).collect();
        violations.push(format!("{path}: {shown:?} is not allowed; a number"));
    }
    parsed
}

/// What is wrong with a field.
fn error_of<'a>(name: &str, violations: &'a [String]) -> Option<&'a str> {
    violations.iter().find_map(|violation| {
        let rest = violation.strip_prefix("config.").unwrap_or(violation).strip_prefix(name)?;
        // `image_descriptions[3]: …` too.
        rest.starts_with([':', '[']).then_some(violation.as_str())
    })
}

/// A labelled field; `input` gets its id and whether it is invalid.
fn field(
    name: &str,
    label: &str,
    hint: &str,
    violations: &[String],
    input: impl FnOnce(Option<&'static str>, &str) -> Markup,
) -> Markup {
    let error = error_of(name, violations);
    html! {
        div.field {
            label for=(name) { (label) }
            (input(error.map(|_| "true"), &format!("{name}-hint {name}-error")))
            p.hint id={ (name) "-hint" } { (hint) }
            (field_error(name, error))
        }
    }
}

/// A field for a number.
pub(super) fn number_field(name: &str, label: &str, hint: &str, entered: &Entered, violations: &[String]) -> Markup {
    field(name, label, hint, violations, |invalid, described_by| {
        html! {
            input id=(name) name=(name) value=(entered.text(name)) inputmode="decimal" size="10" aria-invalid=[invalid] aria-describedby=(described_by);
        }
    })
}

/// A field for several lines.
pub(super) fn text_area(
    name: &str,
    label: &str,
    hint: &str,
    rows: u32,
    entered: &Entered,
    violations: &[String],
) -> Markup {
    field(name, label, hint, violations, |invalid, described_by| {
        html! {
            textarea id=(name) name=(name) rows=(rows) aria-invalid=[invalid] aria-describedby=(described_by) { (entered.text(name)) }
        }
    })
}

/// A field for one of some values.
fn choice(name: &str, label: &str, hint: &str, values: &[&str], entered: &Entered, violations: &[String]) -> Markup {
    field(name, label, hint, violations, |invalid, described_by| {
        html! {
            select id=(name) name=(name) aria-invalid=[invalid] aria-describedby=(described_by) {
                option value="" { "default" }
                @for value in values { option selected[*value == entered.text(name)] { (value) } }
            }
        }
    })
}

/// A checkbox that says that there is none.
fn none_box(name: &str, label: &str, entered: &Entered) -> Markup {
    let name = no_field(name);
    html! {
        label.check { input type="checkbox" name=(name) checked[entered.texts.contains_key(&name)]; " " (label) }
    }
}

/// The fields of a style.
pub(super) fn style_fields(entered: &Entered, violations: &[String], rules: &Rules) -> Markup {
    let cfg_scale =
        format!("how closely images follow the prompt: {} to {}", rules.cfg_scale.start(), rules.cfg_scale.end());
    let steps = format!("diffusion steps: {} to {}", rules.steps.start(), rules.steps.end());
    html! {
        div.fields {
            div {
                (text_area("style_modifiers", "Style modifiers", "one line for each; appended to every description", 4, entered, violations))
                (none_box("style_modifiers", "no style modifiers", entered))
            }
            div {
                (text_area("negative_prompt", "Negative prompt", "what the images must not show", 4, entered, violations))
                (none_box("negative_prompt", "no negative prompt", entered))
            }
            (choice("style_preset", "Style preset", "a preset of the API", &rules.style_presets, entered, violations))
            (number_field("cfg_scale", "CFG scale", &cfg_scale, entered, violations))
            (number_field("steps", "Steps", &steps, entered, violations))
        }
    }
}

/// The optional fields of a command.
pub(super) fn option_fields(entered: &Entered, violations: &[String], rules: &Rules) -> Markup {
    html! {
        div.fields {
            (choice("engine", "Engine", "the model that makes the images", &rules.engines, entered, violations))
            (choice("upscaler", "Upscaler", "fast: by Stability, for 2 credits more an image", &["lanczos", "fast"], entered, violations))
            (number_field("seed", "Seed", "of the first image; 0 lets the API choose", entered, violations))
            (choice("cache", "Cache", "whether an earlier image of the same prompt is used", &["never", "on_failure", "prefer"], entered, violations))
            (number_field("max_cost_usd", "Cost limit", "in US dollars", entered, violations))
            (number_field("min_success_rate", "Success rate", "share of images that must succeed: 0 to 1", entered, violations))
            (number_field("max_concurrent", "Requests in flight", &format!("1 to {MAX_CONCURRENT}"), entered, violations))
            (field("expires_at", "Expires at (UTC)", "from then on, no request is sent for the job", violations, |invalid, described_by| html! {
                input #expires_at name="expires_at" type="datetime-local" value=(entered.text("expires_at").trim_end_matches('Z')) aria-invalid=[invalid] aria-describedby=(described_by);
            }))
        }
        details open[!violations.is_empty()] {
            summary { "Style" }
            (style_fields(entered, violations, rules))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(texts: &[(&str, &str)]) -> Entered {
        let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).into())).collect();
        Entered { job_id: Uuid::nil().to_string(), texts }
    }

    #[test]
    fn empty_fields_are_left_out_and_lines_become_lists() {
        let form = entered(&[
            ("project_id", "7"),
            ("image_descriptions", " A fox \r\n\r\nA bear\n"),
            ("steps", "30"),
            ("expires_at", "2026-12-01T12:00"),
            ("no_style_modifiers", "on"),
            ("no_negative_prompt", "on"),
        ]);
        assert_eq!(
            command_json(&form),
            Ok(json!({
                "project_id": 7,
                "image_descriptions": ["A fox", "A bear"],
                "config": {"steps": 30, "expires_at": "2026-12-01T12:00:00Z", "style_modifiers": [], "negative_prompt": ""},
            }))
        );
        assert_eq!(command_json(&entered(&[])), Ok(json!({"image_descriptions": [], "config": {}})));
    }

    #[test]
    fn text_that_is_no_number_is_named() {
        let form = entered(&[("project_id", "seven"), ("cfg_scale", "1,5")]);
        let violations = command_json(&form).expect_err("no numbers");
        assert_eq!(
            violations,
            ["project_id: \"seven\" is not allowed; a number", "config.cfg_scale: \"1,5\" is not allowed; a number"]
        );
        assert!(error_of("cfg_scale", &violations).is_some());
        assert!(error_of("cfg", &violations).is_none());
        assert!(error_of("image_descriptions", &["image_descriptions[2]: is empty".to_owned()]).is_some());
    }
}
