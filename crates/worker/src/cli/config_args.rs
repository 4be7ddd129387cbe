//! Flags for the keys of a command's `config`. Their values are checked by the rules of the JSON.
#![expect(clippy::doc_markdown, reason = "the documentation of arguments is what --help shows")]

use std::time::Duration;

use serde_json::{Map, Number, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Flags for the style of images.
#[derive(Debug, clap::Args)]
pub(super) struct StyleArgs {
    /// Modifier appended to every description, in English or in another script, which is translated; may be given more
    /// than once
    #[arg(long = "modifier", value_name = "TEXT")]
    modifiers: Vec<String>,
    /// Append no modifiers, not even the default ones
    #[arg(long, conflicts_with = "modifiers")]
    no_modifiers: bool,
    /// What the images must not show; an empty text excludes nothing
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Style preset of the API, for example cinematic
    #[arg(long, value_name = "NAME")]
    style_preset: Option<String>,
    /// How closely the images follow the prompt, 0 to 35
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    cfg_scale: Option<String>,
    /// Number of diffusion steps, 10 to 50
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    steps: Option<String>,
}

impl StyleArgs {
    /// The ids of all arguments.
    pub(super) const IDS: [&str; 6] =
        ["modifiers", "no_modifiers", "negative_prompt", "style_preset", "cfg_scale", "steps"];

    /// The keys that are given.
    pub(super) fn to_keys(&self) -> Map<String, Value> {
        let has_modifiers = self.no_modifiers || !self.modifiers.is_empty();
        to_map([
            ("style_modifiers", has_modifiers.then(|| json!(self.modifiers))),
            ("negative_prompt", self.negative_prompt.as_ref().map(|text| json!(text))),
            ("style_preset", self.style_preset.as_ref().map(|name| json!(name))),
            ("cfg_scale", self.cfg_scale.as_deref().map(to_number)),
            ("steps", self.steps.as_deref().map(to_number)),
        ])
    }
}

/// Flags for the keys of `config`; each replaces the key of the command.
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    style: StyleArgs,
    /// Engine of the images, for example core
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// How the images get their final size: lanczos or fast
    #[arg(long, value_name = "NAME")]
    upscaler: Option<String>,
    /// Seed of the first image; 0 lets the API choose
    #[arg(long, value_name = "SEED", allow_negative_numbers = true)]
    seed: Option<String>,
    /// Use of earlier images: never, on_failure or prefer
    #[arg(long, value_name = "MODE")]
    cache: Option<String>,
    /// Cost limit of the job in US dollars
    #[arg(long, value_name = "USD", allow_negative_numbers = true)]
    max_cost: Option<String>,
    /// Share of the images that must succeed, 0 to 1
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    min_success_rate: Option<String>,
    /// Time from now after which no further request is sent for the job, for example 30m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires_in: Option<Duration>,
}

impl ConfigArgs {
    /// The keys that are given; `expires_at` is calculated now.
    pub(super) fn to_keys(&self) -> Map<String, Value> {
        let mut keys = self.style.to_keys();
        let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
        let number = |text: &Option<String>| text.as_deref().map(to_number);
        keys.extend(to_map([
            ("engine", text(&self.engine)),
            ("upscaler", text(&self.upscaler)),
            ("seed", number(&self.seed)),
            ("cache", text(&self.cache)),
            ("max_cost_usd", number(&self.max_cost)),
            ("min_success_rate", number(&self.min_success_rate)),
            ("expires_at", self.expires_in.map(|expires_in| json!(time_from_now(expires_in)))),
        ]));
        keys
    }
}

fn to_map<const N: usize>(keys: [(&str, Option<Value>); N]) -> Map<String, Value> {
    keys.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// A number as in JSON; another text stays a text, which the rules reject by its key.
fn to_number(text: &str) -> Value {
    serde_json::from_str::<Number>(text).map_or_else(|_| json!(text), Value::Number)
}

/// The time after `duration` by RFC 3339, in whole seconds as a person would write it.
fn time_from_now(duration: Duration) -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond");
    let time = now.saturating_add(duration.try_into().unwrap_or(time::Duration::MAX));
    time.format(&Rfc3339).expect("a time with a year up to 9999 can be formatted")
}
