//! The style that all images of a job share.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fields::{self, Fields, truncate_violations};
use crate::rules::{MAX_DESCRIPTION_CHARS, MAX_STYLE_MODIFIERS, Rules};

/// The style of a job's images. `None` leaves a setting to the next level: command, project, worker, API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Style {
    /// Appended to every description; an empty list means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_modifiers: Option<Vec<String>>,
    /// Content that the images must not show; an empty text excludes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// One of [`Rules::style_presets`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_preset: Option<String>,
    /// How closely the images follow the prompt, within [`Rules::cfg_scale`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f64>,
    /// Diffusion steps, within [`Rules::steps`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u8>,
}

/// A style that is not valid, with its violations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidStyle(pub Vec<String>);

impl Style {
    /// Parses a style from a JSON object. Its keys are the style settings of a command's `config`.
    ///
    /// # Errors
    ///
    /// [`InvalidStyle`] names each key that is unknown or out of range.
    pub fn parse(value: Value, rules: &Rules) -> Result<Self, InvalidStyle> {
        let Value::Object(object) = value else {
            return Err(InvalidStyle(vec![format!(
                "{} is not allowed; a JSON object",
                fields::describe_value(&value)
            )]));
        };
        let mut fields = Fields::new(object);
        let style = Self::from_fields(&mut fields, rules);
        let violations = fields.into_violations();
        if violations.is_empty() { Ok(style) } else { Err(InvalidStyle(truncate_violations(violations))) }
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

    /// Returns this style with its unset values taken from `other`.
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
        let rules = Rules {
            engines: vec![],
            engines_without_fast_upscaler: vec![],
            style_presets: vec!["cinematic", "anime"],
            cfg_scale: 0.0..=35.0,
            steps: 10..=50,
        };
        Style::parse(value, &rules).map_err(|error| error.to_string())
    }

    #[test]
    fn style_is_parsed_like_command_config() {
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
    fn explicit_style_overrides_stored_style_even_when_empty() {
        let explicit = Style { style_modifiers: Some(vec![]), steps: Some(20), ..Style::default() };
        let stored = Style {
            style_modifiers: Some(vec!["warm".into()]),
            style_preset: Some("anime".into()),
            steps: Some(40),
            ..Style::default()
        };
        let both = explicit.or(stored);
        assert_eq!(both.style_modifiers, Some(vec![]));
        assert_eq!((both.style_preset.as_deref(), both.steps, both.cfg_scale), (Some("anime"), Some(20), None));
    }
}
