//! The "generate assets" command, and how it is parsed from a message body.
//!
//! Parsing is strict. All violations are reported at once, each with the field, the value and the allowed values, so
//! that a producer can fix its message in one step.

use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::digest;
use crate::fields::{self, Fields, truncate_violations};
use crate::rules::{MAX_CONCURRENT, MAX_DESCRIPTION_CHARS, MAX_IMAGES, Rules};
use crate::schema::value;
use crate::style::Style;
use crate::upscaler::Upscaler;

/// A request for the images of one job.
///
/// Two commands are equal if they are equal after parsing: key order and white space of the bodies do not matter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Command {
    /// The idempotency key: a job that is delivered twice is executed once.
    #[schemars(schema_with = "value::uuid")]
    pub job_id: Uuid,
    /// The project the images belong to, above 0.
    #[schemars(schema_with = "value::project_id")]
    pub project_id: i64,
    /// One description for each image: 1 to 200 texts, trimmed, each 1 to 2,000 characters.
    #[schemars(schema_with = "value::descriptions")]
    pub image_descriptions: Vec<String>,
    /// Settings that override the defaults.
    #[serde(default)]
    #[schemars(with = "Option<JobConfig>")]
    pub config: JobConfig,
}

/// The optional part of a command. An absent key means the default, which may differ between projects and workers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct JobConfig {
    /// Appended to every description; an empty list means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "value::style_modifiers")]
    pub style_modifiers: Option<Vec<String>>,
    /// Content that the images must not show; an empty text excludes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "value::negative_prompt")]
    pub negative_prompt: Option<String>,
    /// Maximum number of requests in flight for this job, 1 to 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_CONCURRENT))]
    pub max_concurrent: Option<u8>,
    /// Name of an engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// How the images get their final size; `fast` is not allowed for engines whose images it does not take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upscaler: Option<Upscaler>,
    /// Name of a style preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style_preset: Option<String>,
    /// How closely the image follows the prompt, within the range of the engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f64>,
    /// Diffusion steps; for engines that take them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u8>,
    /// Seed of the first image; 0 lets the API choose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// Whether a cached image may be used instead of a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheMode>,
    /// The share of images that must succeed, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub min_success_rate: Option<f64>,
    /// Cost limit of this job, in USD, 0 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_cost_usd: Option<f64>,
    /// From then on, no request is sent for the job. In UTC.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "value::expiry")]
    pub expires_at: Option<OffsetDateTime>,
}

/// The share of images that must succeed if the command does not set one.
pub const DEFAULT_MIN_SUCCESS_RATE: f64 = 0.8;

impl JobConfig {
    /// The part of the configuration that determines the style of the images.
    pub fn style(&self) -> Style {
        Style {
            style_modifiers: self.style_modifiers.clone(),
            negative_prompt: self.negative_prompt.clone(),
            style_preset: self.style_preset.clone(),
            cfg_scale: self.cfg_scale,
            steps: self.steps,
        }
    }

    /// The most requests in flight for the job, in a process that allows this many.
    pub fn max_concurrent(&self, allowed: NonZeroUsize) -> NonZeroUsize {
        let requested = self.max_concurrent.and_then(|requested| NonZeroUsize::new(requested.into()));
        requested.map_or(allowed, |requested| requested.min(allowed))
    }

    /// The share of images that must succeed, 0 to 1.
    pub fn min_success_rate(&self) -> f64 {
        self.min_success_rate.unwrap_or(DEFAULT_MIN_SUCCESS_RATE)
    }
}

/// When an earlier image of the same prompt and generation parameters may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// A cached image is never used.
    Never,
    /// A cached image is used if the API fails (cache fallback).
    #[default]
    OnFailure,
    /// A cached image is used if there is one; then the API is not called.
    Prefer,
}

/// The ids of a job and of its project; known for an invalid command too if both could be parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobKey {
    /// The job's id.
    pub job_id: Uuid,
    /// The project's id, above 0.
    pub project_id: i64,
}

/// A message body that is not a valid command, with its violations.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", .violations.join("; "))]
pub struct InvalidCommand {
    /// One sentence for each violation: field, value, allowed values. Never empty.
    ///
    /// The first 20 violations are listed; a last entry gives the number of the others.
    pub violations: Vec<String>,
    /// The job's ids, if both could be parsed.
    pub key: Option<JobKey>,
}

impl InvalidCommand {
    fn without_key(violation: String) -> Self {
        Self { violations: vec![violation], key: None }
    }
}

impl Command {
    /// The ids of the job and of its project.
    pub fn key(&self) -> JobKey {
        JobKey { job_id: self.job_id, project_id: self.project_id }
    }

    /// The SHA-256 of the command, in lower-case hex.
    ///
    /// Commands that are equal after parsing have the same digest: key order does not matter.
    pub fn digest(&self) -> String {
        digest::sha256(serde_json::to_vec(self).expect("a command serialises"))
    }

    /// Parses a command from the body of a message.
    ///
    /// # Errors
    ///
    /// [`InvalidCommand`] names each field that is missing, unknown or out of range.
    pub fn parse(body: &[u8], rules: &Rules) -> Result<Self, InvalidCommand> {
        let object = fields::parse_object(body).map_err(InvalidCommand::without_key)?;
        Self::from_fields(Fields::new(object), None, rules)
    }

    /// Parses the command of a job whose id is known: in the body it may be absent, or must be equal.
    ///
    /// # Errors
    ///
    /// As [`Command::parse`].
    pub fn parse_with_id(body: &[u8], job_id: Uuid, rules: &Rules) -> Result<Self, InvalidCommand> {
        let object = fields::parse_object(body).map_err(InvalidCommand::without_key)?;
        Self::from_fields(Fields::new(object), Some(job_id), rules)
    }

    fn from_fields(mut fields: Fields, known_id: Option<Uuid>, rules: &Rules) -> Result<Self, InvalidCommand> {
        let job_id = fields::job_id(&mut fields, known_id);
        let project_id = fields.required("project_id", "a whole number from 1 to 9223372036854775807", |value| {
            fields::as_whole_number(value).and_then(|id| i64::try_from(id).ok()).filter(|id| *id > 0)
        });
        let image_descriptions = fields.texts("image_descriptions", 1..=MAX_IMAGES, 1..=MAX_DESCRIPTION_CHARS);
        if image_descriptions.is_none() {
            fields.report_missing("image_descriptions", "a list of 1 to 200 texts");
        }
        let config = fields.object("config").map(|config| JobConfig::from_fields(config, rules));
        let mut violations = fields.into_violations();
        let config = match config {
            None => JobConfig::default(),
            Some((config, config_violations)) => {
                violations.extend(config_violations);
                config
            }
        };
        let key = job_id.zip(project_id).map(|(job_id, project_id)| JobKey { job_id, project_id });
        match (key, image_descriptions) {
            (Some(JobKey { job_id, project_id }), Some(image_descriptions)) if violations.is_empty() => {
                Ok(Self { job_id, project_id, image_descriptions, config })
            }
            (key, _) => Err(InvalidCommand { violations: truncate_violations(violations), key }),
        }
    }
}

impl JobConfig {
    fn from_fields(mut fields: Fields, rules: &Rules) -> (Self, Vec<String>) {
        let Style { style_modifiers, negative_prompt, style_preset, cfg_scale, steps } =
            Style::from_fields(&mut fields, rules);
        let max_concurrent = fields.integer("max_concurrent", 1..=MAX_CONCURRENT);
        let engine = fields.one_of("engine", &rules.engines);
        let without_fast = engine.as_deref().filter(|engine| rules.engines_without_fast_upscaler.contains(engine));
        let allowed = without_fast.map_or_else(
            || "lanczos or fast".to_owned(),
            |engine| format!("lanczos: the fast upscaler does not take the images of {engine}"),
        );
        let upscaler = fields.optional("upscaler", &allowed, |value| {
            let upscaler = fields::from_name(value)?;
            (upscaler == Upscaler::Lanczos || without_fast.is_none()).then_some(upscaler)
        });
        let config = Self {
            style_modifiers,
            negative_prompt,
            max_concurrent,
            engine,
            upscaler,
            style_preset,
            cfg_scale,
            steps,
            seed: fields.integer("seed", 0..=u32::MAX),
            cache: fields.optional("cache", "never, on_failure or prefer", fields::from_name),
            min_success_rate: fields.number("min_success_rate", 0.0..=1.0),
            max_cost_usd: fields.number("max_cost_usd", 0.0..=1_000_000.0),
            expires_at: fields.time("expires_at"),
        };
        (config, fields.into_violations())
    }
}

#[cfg(test)]
mod tests;
