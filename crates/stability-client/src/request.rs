//! What is asked of the API. Every range is checked before anything is sent.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use crate::engine::{Engine, Size, StylePreset};

/// The most characters of one prompt. Source: v1 specification, `TextPrompt.text`.
pub const MAX_PROMPT_CHARS: usize = 2_000;
/// The range of `cfg_scale`. Source: v1 specification.
pub const CFG_SCALE: RangeInclusive<f64> = 0.0..=35.0;
/// The range of `steps`. Source: v1 specification.
pub const STEPS: RangeInclusive<u8> = 10..=50;

/// A request that the API would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value} is not allowed; {allowed}")]
pub struct InvalidRequest {
    /// The API's name of the field.
    pub field: &'static str,
    /// What was given; of a prompt, its length.
    pub value: String,
    /// What the API takes.
    pub allowed: String,
}

impl InvalidRequest {
    fn new(field: &'static str, value: impl Display, allowed: impl Into<String>) -> Self {
        Self { field, value: value.to_string(), allowed: allowed.into() }
    }
}

/// A request for one picture from a text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextToImage {
    pub(crate) engine: Engine,
    pub(crate) prompt: String,
    negative_prompt: Option<String>,
    size: Size,
    cfg_scale: f64,
    steps: u8,
    seed: u32,
    style_preset: Option<StylePreset>,
}

impl TextToImage {
    /// Asks for a picture of `prompt` (English, 1 to 2,000 characters) in one of the engine's sizes.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] where the prompt is empty or too long, or the engine does not take the size.
    pub fn new(engine: Engine, size: Size, prompt: impl Into<String>) -> Result<Self, InvalidRequest> {
        if !engine.sizes().contains(&size) {
            let sizes: Vec<_> = engine.sizes().iter().map(ToString::to_string).collect();
            return Err(InvalidRequest::new("size", size, format!("one of {}", sizes.join(", "))));
        }
        let prompt = checked_prompt("prompt", prompt.into())?;
        Ok(Self { engine, prompt, negative_prompt: None, size, cfg_scale: 7.0, steps: 30, seed: 0, style_preset: None })
    }

    /// What the picture shall not show; an empty text is as none.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] above 2,000 characters.
    pub fn negative_prompt(mut self, text: impl Into<String>) -> Result<Self, InvalidRequest> {
        let text = text.into();
        self.negative_prompt =
            if text.trim().is_empty() { None } else { Some(checked_prompt("negative_prompt", text)?) };
        Ok(self)
    }

    /// How closely the picture follows the prompt, 0 to 35.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] outside [`CFG_SCALE`].
    pub fn cfg_scale(mut self, cfg_scale: f64) -> Result<Self, InvalidRequest> {
        if !CFG_SCALE.contains(&cfg_scale) {
            return Err(InvalidRequest::new("cfg_scale", cfg_scale, "a number from 0 to 35"));
        }
        self.cfg_scale = cfg_scale;
        Ok(self)
    }

    /// Diffusion steps, 10 to 50.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] outside [`STEPS`].
    pub fn steps(mut self, steps: u8) -> Result<Self, InvalidRequest> {
        if !STEPS.contains(&steps) {
            return Err(InvalidRequest::new("steps", steps, "a whole number from 10 to 50"));
        }
        self.steps = steps;
        Ok(self)
    }

    /// The same request with the same seed makes the same picture; 0 lets the API choose.
    #[must_use]
    pub fn seed(mut self, seed: u32) -> Self {
        self.seed = seed;
        self
    }

    /// A look that the API knows by name.
    #[must_use]
    pub fn style_preset(mut self, preset: impl Into<Option<StylePreset>>) -> Self {
        self.style_preset = preset.into();
        self
    }

    /// The path below the base URL.
    pub(crate) fn path(&self) -> String {
        format!("v1/generation/{}/text-to-image", self.engine.id())
    }

    /// The JSON body of the v1 API.
    pub(crate) fn body(&self) -> Value {
        let mut prompts = vec![json!({"text": self.prompt, "weight": 1.0})];
        if let Some(negative) = &self.negative_prompt {
            prompts.push(json!({"text": negative, "weight": -1.0}));
        }
        let mut body = json!({
            "text_prompts": prompts,
            "width": self.size.width,
            "height": self.size.height,
            "cfg_scale": self.cfg_scale,
            "steps": self.steps,
            "samples": 1,
            "seed": self.seed,
        });
        if let Some(preset) = self.style_preset {
            body["style_preset"] = preset.as_str().into();
        }
        body
    }
}

fn checked_prompt(field: &'static str, text: String) -> Result<String, InvalidRequest> {
    let length = text.chars().count();
    if text.trim().is_empty() || length > MAX_PROMPT_CHARS {
        return Err(InvalidRequest::new(
            field,
            format_args!("{length} characters"),
            format!("1 to {MAX_PROMPT_CHARS} characters"),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 1344, height: 768 };

    fn request() -> TextToImage {
        TextToImage::new(Engine::Sdxl10, SIZE, "A fox").expect("a good request")
    }

    #[test]
    fn the_body_is_that_of_the_v1_api() {
        let request = request()
            .negative_prompt("blurry")
            .and_then(|request| request.cfg_scale(8.0))
            .and_then(|request| request.steps(40))
            .expect("in range")
            .seed(7)
            .style_preset(StylePreset::ThreeDModel);
        assert_eq!(request.path(), "v1/generation/stable-diffusion-xl-1024-v1-0/text-to-image");
        assert_eq!(
            request.body(),
            json!({
                "text_prompts": [{"text": "A fox", "weight": 1.0}, {"text": "blurry", "weight": -1.0}],
                "width": 1344, "height": 768, "cfg_scale": 8.0, "steps": 40, "samples": 1, "seed": 7,
                "style_preset": "3d-model",
            })
        );
    }

    #[test]
    fn an_empty_negative_prompt_is_not_sent() {
        let body = request().negative_prompt("  ").expect("none").body();
        assert_eq!(body["text_prompts"], json!([{"text": "A fox", "weight": 1.0}]));
        assert!(body.get("style_preset").is_none());
    }

    #[test]
    fn what_the_api_would_refuse_is_not_built() {
        let check = |result: Result<TextToImage, InvalidRequest>, expected: &str| {
            assert_eq!(result.expect_err(expected).to_string(), expected);
        };
        let full_hd = Size { width: 1920, height: 1080 };
        check(
            TextToImage::new(Engine::Sdxl10, full_hd, "A fox"),
            "size: 1920x1080 is not allowed; one of 1024x1024, 1152x896, 1216x832, 1344x768, 1536x640, 640x1536, 768x1344, 832x1216, 896x1152",
        );
        check(TextToImage::new(Engine::Sdxl10, SIZE, " "), "prompt: 1 characters is not allowed; 1 to 2000 characters");
        check(
            TextToImage::new(Engine::Sdxl10, SIZE, "é".repeat(2001)),
            "prompt: 2001 characters is not allowed; 1 to 2000 characters",
        );
        check(request().cfg_scale(35.5), "cfg_scale: 35.5 is not allowed; a number from 0 to 35");
        check(request().cfg_scale(f64::NAN), "cfg_scale: NaN is not allowed; a number from 0 to 35");
        check(request().steps(9), "steps: 9 is not allowed; a whole number from 10 to 50");
    }
}
