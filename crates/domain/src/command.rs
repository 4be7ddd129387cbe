//! The "generate assets" command: what a producer may ask for, and how a body is read.
//!
//! Reading is strict. Every rule that is broken is reported, each with the field, the value and what is allowed, so that a
//! producer mends its message once and not key by key.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::digest;
use crate::fields::{self, Fields, first_ones};
use crate::rules::{MAX_BODY_BYTES, MAX_CONCURRENT, MAX_DESCRIPTION_CHARS, MAX_IMAGES, Rules};
use crate::strict_json;
use crate::style::Style;

/// A request for the images of one job.
///
/// Two commands are equal when they ask for the same thing, whatever the order of keys and the white space of their bodies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The idempotency key: the same job delivered twice has the effect of once.
    pub job_id: Uuid,
    /// The project the images belong to, above 0.
    pub project_id: i64,
    /// One description an image, 1 to 200, trimmed, each 1 to 2,000 characters.
    pub image_descriptions: Vec<String>,
    /// What differs from the defaults.
    #[serde(default)]
    pub config: JobConfig,
}

/// The optional part of a command. An absent key means the default, which may differ between processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobConfig {
    /// Appended to every description; an empty list means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_modifiers: Option<Vec<String>>,
    /// What the pictures must not show; an empty text means nothing is excluded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// Requests in flight for this job, 1 to 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u8>,
    /// One of [`Rules::engines`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// One of [`Rules::style_presets`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_preset: Option<String>,
    /// How closely the picture follows the prompt, within [`Rules::cfg_scale`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f64>,
    /// Diffusion steps, within [`Rules::steps`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u8>,
    /// 0 lets the API choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// Whether an image made before may stand in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheMode>,
    /// The share of images that must succeed, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_success_rate: Option<f64>,
    /// The most this job may cost, in USD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<f64>,
}

/// The share of images that must succeed when the command does not say.
pub const DEFAULT_MIN_SUCCESS_RATE: f64 = 0.8;

impl JobConfig {
    /// The part of it that decides how the images look.
    pub fn style(&self) -> Style {
        Style {
            style_modifiers: self.style_modifiers.clone(),
            negative_prompt: self.negative_prompt.clone(),
            style_preset: self.style_preset.clone(),
            cfg_scale: self.cfg_scale,
            steps: self.steps,
        }
    }

    /// The share of images that must succeed, 0 to 1.
    pub fn min_success_rate(&self) -> f64 {
        self.min_success_rate.unwrap_or(DEFAULT_MIN_SUCCESS_RATE)
    }
}

/// When an image made before from the same prompt and parameters may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// Never.
    Never,
    /// When the API fails.
    #[default]
    OnFailure,
    /// Always; the API is not called where one exists.
    Prefer,
}

/// Who a command that cannot be followed came from, where that much could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobKey {
    /// The job.
    pub job_id: Uuid,
    /// Its project, above 0.
    pub project_id: i64,
}

/// A body that is not a command, with every rule it breaks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", .violations.join("; "))]
pub struct InvalidCommand {
    /// One sentence a rule: field, value, what is allowed. Never empty.
    pub violations: Vec<String>,
    /// Whose job it was, where both ids could be read.
    pub key: Option<JobKey>,
}

impl InvalidCommand {
    fn unreadable(violation: String) -> Self {
        Self { violations: vec![violation], key: None }
    }
}

impl Command {
    /// Whose job it is.
    pub fn key(&self) -> JobKey {
        JobKey { job_id: self.job_id, project_id: self.project_id }
    }

    /// What tells it from every other command: SHA-256 in lower-case hex. The same after parsing is the same, whatever the order of keys.
    pub fn digest(&self) -> String {
        digest::sha256(serde_json::to_vec(self).expect("a command serialises"))
    }

    /// Reads a command from the body of a message.
    ///
    /// # Errors
    ///
    /// [`InvalidCommand`] names every field that is missing, unknown or out of range.
    pub fn parse(body: &[u8], rules: &Rules) -> Result<Self, InvalidCommand> {
        if body.len() > MAX_BODY_BYTES {
            return Err(InvalidCommand::unreadable(format!(
                "body: {} bytes is not allowed; at most {MAX_BODY_BYTES} bytes",
                body.len()
            )));
        }
        let value = strict_json::parse(body)
            .map_err(|error| InvalidCommand::unreadable(format!("body: not JSON in UTF-8 ({error})")))?;
        let Value::Object(object) = value else {
            return Err(InvalidCommand::unreadable(format!(
                "body: {} is not allowed; a JSON object",
                fields::shown(&value)
            )));
        };
        Self::from_fields(Fields::root(object), rules)
    }

    fn from_fields(mut fields: Fields, rules: &Rules) -> Result<Self, InvalidCommand> {
        let job_id =
            fields.required("job_id", "a UUID", |value| value.as_str().and_then(|text| Uuid::try_parse(text).ok()));
        let project_id = fields.required("project_id", "a whole number from 1 to 9223372036854775807", |value| {
            value.as_i64().filter(|id| *id > 0)
        });
        let image_descriptions = fields.texts("image_descriptions", 1..=MAX_IMAGES, 1..=MAX_DESCRIPTION_CHARS);
        if image_descriptions.is_none() {
            fields.missing("image_descriptions", "a list of 1 to 200 texts");
        }
        let config = fields.object("config").map(|config| JobConfig::from_fields(config, rules));
        let mut violations = fields.finish();
        let config = match config {
            None => JobConfig::default(),
            Some((config, more)) => {
                violations.extend(more);
                config
            }
        };
        let key = job_id.zip(project_id).map(|(job_id, project_id)| JobKey { job_id, project_id });
        match (key, image_descriptions) {
            (Some(JobKey { job_id, project_id }), Some(image_descriptions)) if violations.is_empty() => {
                Ok(Self { job_id, project_id, image_descriptions, config })
            }
            (key, _) => Err(InvalidCommand { violations: first_ones(violations), key }),
        }
    }
}

impl JobConfig {
    fn from_fields(mut fields: Fields, rules: &Rules) -> (Self, Vec<String>) {
        let Style { style_modifiers, negative_prompt, style_preset, cfg_scale, steps } =
            Style::from_fields(&mut fields, rules);
        let config = Self {
            style_modifiers,
            negative_prompt,
            max_concurrent: fields.integer("max_concurrent", 1..=MAX_CONCURRENT),
            engine: fields.one_of("engine", &rules.engines),
            style_preset,
            cfg_scale,
            steps,
            seed: fields.integer("seed", 0..=u32::MAX),
            cache: fields.optional("cache", "never, on_failure or prefer", |value| CacheMode::deserialize(value).ok()),
            min_success_rate: fields.number("min_success_rate", 0.0..=1.0),
            max_cost_usd: fields.number("max_cost_usd", 0.0..=1_000_000.0),
        };
        (config, fields.finish())
    }
}

#[cfg(test)]
mod tests;
