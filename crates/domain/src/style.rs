//! How the images of a job look: what they share, so that they belong together.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fields::{self, Fields, first_ones};
use crate::rules::{MAX_DESCRIPTION_CHARS, MAX_STYLE_MODIFIERS, Rules};

/// What all images of a job share. What is `None` is left to whoever comes next: command, project, worker, API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Style {
    /// Appended to every description; an empty list means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_modifiers: Option<Vec<String>>,
    /// What the pictures must not show; an empty text means nothing is excluded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// One of [`Rules::style_presets`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_preset: Option<String>,
    /// Within [`Rules::cfg_scale`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f64>,
    /// Within [`Rules::steps`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u8>,
}

/// A style that cannot be kept, with every rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidStyle(pub Vec<String>);

impl Style {
    /// Reads a style from a JSON object with the keys of a command's `config` that it knows.
    ///
    /// # Errors
    ///
    /// [`InvalidStyle`] names every key that is unknown or out of range.
    pub fn parse(value: Value, rules: &Rules) -> Result<Self, InvalidStyle> {
        let Value::Object(object) = value else {
            return Err(InvalidStyle(vec![format!("{} is not allowed; a JSON object", fields::shown(&value))]));
        };
        let mut fields = Fields::root(object);
        let style = Self::from_fields(&mut fields, rules);
        let violations = fields.finish();
        if violations.is_empty() { Ok(style) } else { Err(InvalidStyle(first_ones(violations))) }
    }

    pub(crate) fn from_fields(fields: &mut Fields, rules: &Rules) -> Self {
        Self {
            style_modifiers: fields.texts("style_modifiers", 0..=MAX_STYLE_MODIFIERS, 1..=MAX_DESCRIPTION_CHARS),
            negative_prompt: fields.text("negative_prompt", 0..=MAX_DESCRIPTION_CHARS),
            style_preset: fields.one_of("style_preset", &rules.style_presets),
            cfg_scale: fields.number("cfg_scale", rules.cfg_scale.clone()),
            steps: fields.integer("steps", rules.steps.clone()),
        }
    }

    /// This style, with what it leaves open taken from another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            style_modifiers: self.style_modifiers.or(other.style_modifiers),
            negative_prompt: self.negative_prompt.or(other.negative_prompt),
            style_preset: self.style_preset.or(other.style_preset),
            cfg_scale: self.cfg_scale.or(other.cfg_scale),
            steps: self.steps.or(other.steps),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<Style, String> {
        let rules =
            Rules { engines: vec![], style_presets: vec!["cinematic", "anime"], cfg_scale: 0.0..=35.0, steps: 10..=50 };
        Style::parse(value, &rules).map_err(|error| error.to_string())
    }

    #[test]
    fn a_style_is_read_like_the_keys_of_a_command() {
        let style = parse(json!({"style_modifiers": [" warm "], "negative_prompt": "", "steps": 30})).expect("a style");
        let expected = Style {
            style_modifiers: Some(vec!["warm".to_owned()]),
            negative_prompt: Some(String::new()),
            steps: Some(30),
            ..Style::default()
        };
        assert_eq!(style, expected);
        assert_eq!(
            parse(json!({"style_preset": "oil", "seed": 7})),
            Err("style_preset: \"oil\" is not allowed; one of cinematic, anime; seed: unknown key; allowed: style_modifiers, negative_prompt, style_preset, cfg_scale, steps".to_owned())
        );
        assert_eq!(parse(json!([])), Err("a list of 0 is not allowed; a JSON object".to_owned()));
    }

    #[test]
    fn what_is_said_wins_over_what_is_kept_even_where_it_says_none() {
        let said = Style { style_modifiers: Some(vec![]), steps: Some(20), ..Style::default() };
        let kept = Style {
            style_modifiers: Some(vec!["warm".into()]),
            style_preset: Some("anime".into()),
            steps: Some(40),
            ..Style::default()
        };
        let both = said.or(kept);
        assert_eq!(both.style_modifiers, Some(vec![]));
        assert_eq!((both.style_preset.as_deref(), both.steps, both.cfg_scale), (Some("anime"), Some(20), None));
    }
}
