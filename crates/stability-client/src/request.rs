//! What is asked of the API. Every range is checked before anything is sent.

mod v1;
mod v2beta;

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::engine::{Engine, Family, Knob};
use crate::error::InvalidRequest;
use crate::frame::Frame;
use crate::options::{AnswerForm, ClipGuidance, OutputFormat, Sampler, StylePreset};
use crate::wire::{HttpBody, HttpRequest};

/// The range of `cfg_scale`. Source: v1 specification.
pub const CFG_SCALE: RangeInclusive<f64> = 0.0..=35.0;
/// The range of `steps`. Source: v1 specification.
pub const STEPS: RangeInclusive<u8> = 10..=50;
/// The range of `samples`. Source: v1 specification.
pub const SAMPLES: RangeInclusive<u8> = 1..=10;

/// A text with a weight: above 0 it is to be seen, below 0 it is not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prompt {
    text: String,
    weight: f64,
}

/// A request for pictures from a text.
///
/// What is not set is left to the API: `cfg_scale` 7, 30 steps, one sample, any seed, PNG. An option that the engine does not take is
/// an error, so that no wish is silently dropped.
///
/// ```
/// use stability_client::{Engine, StylePreset, TextToImage};
///
/// let engine: Engine = "core".parse()?;
/// let request = TextToImage::new(engine, engine.frame_for(1920, 1080), "A lighthouse at dusk")?
///     .negative_prompt("blurry")?
///     .style_preset(StylePreset::Cinematic)?;
/// let refused = request.steps(40).expect_err("core takes no steps");
/// assert_eq!(refused.to_string(), "steps: 40 is not allowed; not taken by core");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TextToImage {
    engine: Engine,
    frame: Frame,
    /// The first one is the main prompt.
    prompts: Vec<Prompt>,
    negative_prompt: Option<String>,
    cfg_scale: Option<f64>,
    steps: Option<u8>,
    samples: u8,
    seed: u32,
    sampler: Option<Sampler>,
    clip_guidance: Option<ClipGuidance>,
    style_preset: Option<StylePreset>,
    output_format: OutputFormat,
}

impl TextToImage {
    /// Asks for a picture of `prompt` (in English) in one of the engine's frames: see [`Engine::frame_for`].
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where the prompt is empty or longer than [`Engine::max_prompt_chars`], or the engine does not take the
    /// frame.
    pub fn new(engine: Engine, frame: Frame, prompt: impl Into<String>) -> Result<Self, InvalidRequest> {
        let field = match engine.family() {
            Family::V1 => "size",
            Family::V2Beta => "aspect_ratio",
        };
        engine.check_frame(frame).map_err(|allowed| InvalidRequest::new(field, frame, allowed))?;
        let text = checked_text(engine, "prompt", prompt.into())?;
        Ok(Self {
            engine,
            frame,
            prompts: vec![Prompt { text, weight: 1.0 }],
            negative_prompt: None,
            cfg_scale: None,
            steps: None,
            samples: 1,
            seed: 0,
            sampler: None,
            clip_guidance: None,
            style_preset: None,
            output_format: OutputFormat::Png,
        })
    }

    /// A further prompt with a weight of its own; below 0 for what the picture shall not show. v1 API.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where the engine takes no weights, the weight is not a finite number, or the text is empty or too long.
    pub fn weighted_prompt(mut self, text: impl Into<String>, weight: f64) -> Result<Self, InvalidRequest> {
        self.taken(Knob::PromptWeights, weight)?;
        if !weight.is_finite() {
            return Err(InvalidRequest::new("text_prompts.weight", weight, "a finite number"));
        }
        let text = checked_text(self.engine, "prompt", text.into())?;
        self.prompts.push(Prompt { text, weight });
        Ok(self)
    }

    /// What the picture shall not show; an empty text is as none. On the v1 API it is a prompt of weight -1.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where it is longer than [`Engine::max_prompt_chars`].
    pub fn negative_prompt(mut self, text: impl Into<String>) -> Result<Self, InvalidRequest> {
        let text = text.into();
        self.negative_prompt =
            if text.trim().is_empty() { None } else { Some(checked_text(self.engine, "negative_prompt", text)?) };
        Ok(self)
    }

    /// How closely the picture follows the prompt, 0 to 35. v1 API.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] outside [`CFG_SCALE`], or where the engine does not take it.
    pub fn cfg_scale(mut self, cfg_scale: f64) -> Result<Self, InvalidRequest> {
        self.taken(Knob::CfgScale, cfg_scale)?;
        if !CFG_SCALE.contains(&cfg_scale) {
            return Err(InvalidRequest::new("cfg_scale", cfg_scale, "a number from 0 to 35"));
        }
        self.cfg_scale = Some(cfg_scale);
        Ok(self)
    }

    /// Diffusion steps, 10 to 50. v1 API.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] outside [`STEPS`], or where the engine does not take it.
    pub fn steps(mut self, steps: u8) -> Result<Self, InvalidRequest> {
        self.taken(Knob::Steps, steps)?;
        if !STEPS.contains(&steps) {
            return Err(InvalidRequest::new("steps", steps, "a whole number from 10 to 50"));
        }
        self.steps = Some(steps);
        Ok(self)
    }

    /// How many pictures are made, and paid for, 1 to 10. v1 API.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] outside [`SAMPLES`], or where the engine does not take it.
    pub fn samples(mut self, samples: u8) -> Result<Self, InvalidRequest> {
        self.taken(Knob::Samples, samples)?;
        if !SAMPLES.contains(&samples) {
            return Err(InvalidRequest::new("samples", samples, "a whole number from 1 to 10"));
        }
        self.samples = samples;
        Ok(self)
    }

    /// The same request with the same seed makes the same picture; 0 lets the API choose.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] above [`Engine::max_seed`].
    pub fn seed(mut self, seed: u32) -> Result<Self, InvalidRequest> {
        let max = self.engine.max_seed();
        if seed > max {
            return Err(InvalidRequest::new("seed", seed, format!("a whole number from 0 to {max}")));
        }
        self.seed = seed;
        Ok(self)
    }

    /// How noise becomes a picture. v1 API.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where the engine does not take it.
    pub fn sampler(mut self, sampler: Sampler) -> Result<Self, InvalidRequest> {
        self.taken(Knob::Sampler, sampler.as_str())?;
        self.sampler = Some(sampler);
        Ok(self)
    }

    /// Guidance by CLIP. v1 API.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where the engine does not take it.
    pub fn clip_guidance(mut self, guidance: ClipGuidance) -> Result<Self, InvalidRequest> {
        self.taken(Knob::ClipGuidance, guidance.as_str())?;
        self.clip_guidance = Some(guidance);
        Ok(self)
    }

    /// A look that the API knows by name. v1 API and `core`.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where the engine does not take it.
    pub fn style_preset(mut self, preset: StylePreset) -> Result<Self, InvalidRequest> {
        self.taken(Knob::StylePreset, preset.as_str())?;
        self.style_preset = Some(preset);
        Ok(self)
    }

    /// How the picture is encoded. v2beta API; PNG unless set.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where the engine does not take it.
    pub fn output_format(mut self, format: OutputFormat) -> Result<Self, InvalidRequest> {
        self.taken(Knob::OutputFormat, format.as_str())?;
        self.output_format = format;
        Ok(self)
    }

    /// The engine it is for.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The seed that is asked for; `None` where it is left to the API.
    pub(crate) fn asked_seed(&self) -> Option<u32> {
        (self.seed != 0).then_some(self.seed)
    }

    /// Its main prompt.
    pub fn prompt(&self) -> &str {
        &self.prompts[0].text
    }

    /// The request to send, with the answer in this form where the API can give it so.
    pub(crate) fn to_http(&self, form: AnswerForm) -> HttpRequest {
        let body = match self.engine.family() {
            Family::V1 => HttpBody::Json(v1::body(self)),
            Family::V2Beta => HttpBody::Form(v2beta::form(self)),
        };
        let accept = match (form, self.engine.family()) {
            // Several pictures come as JSON only.
            (AnswerForm::Image, Family::V1) if self.samples == 1 => "image/png",
            (AnswerForm::Image, Family::V2Beta) => "image/*",
            (AnswerForm::Json | AnswerForm::Image, _) => "application/json",
        };
        HttpRequest { path: self.engine.path(), body, accept, resends: 0 }
    }

    fn taken(&self, knob: Knob, value: impl Display) -> Result<(), InvalidRequest> {
        if self.engine.takes(knob) {
            return Ok(());
        }
        Err(InvalidRequest::new(knob.field(), value, format!("not taken by {}", self.engine)))
    }
}

fn checked_text(engine: Engine, field: &'static str, text: String) -> Result<String, InvalidRequest> {
    let (length, max) = (text.chars().count(), engine.max_prompt_chars());
    if text.trim().is_empty() || length > max {
        let value = format_args!("{length} characters").to_string();
        return Err(InvalidRequest::new(field, value, format!("1 to {max} characters")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
