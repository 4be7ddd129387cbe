//! Text-to-image requests. Every range is checked when the request is built.

mod v1;
mod v2beta;

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::dimensions::Dimensions;
use crate::engine::{ApiVersion, CFG_SCALE, Engine, RequestOption};
use crate::error::InvalidRequest;
use crate::operation::Operation;
use crate::options::{ClipGuidance, OutputFormat, ResponseFormat, Sampler, StylePreset};
use crate::wire::{HttpBody, HttpRequest};

/// The range of `steps`. Source: v1 specification.
pub const STEPS: RangeInclusive<u8> = 10..=50;
/// The range of `samples`. Source: v1 specification.
pub const SAMPLES: RangeInclusive<u8> = 1..=10;

/// A request of any operation, with what the client needs to know about it.
#[derive(Debug, Clone)]
pub(crate) struct ApiRequest<'a> {
    pub(crate) operation: Operation,
    /// Name of the engine, or of the upscaler.
    pub(crate) model: &'a str,
    /// The version of the API that decides how a response is decoded.
    pub(crate) api_version: ApiVersion,
    /// Number of images that one request is charged for.
    pub(crate) images: u32,
    /// The seed that was set; `None` if the API chooses it.
    #[cfg_attr(not(feature = "tracing"), expect(dead_code, reason = "for spans"))]
    pub(crate) seed: Option<u32>,
    /// Whether the same request returns the same image again.
    pub(crate) repeats_result: bool,
    /// The main prompt, if the operation has one.
    pub(crate) prompt: Option<&'a str>,
    pub(crate) http: HttpRequest,
}

/// A text with a weight: above 0 for what the image shall show, below 0 for what it shall not show.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prompt {
    text: String,
    weight: f64,
}

/// A request to generate images from a text.
///
/// Defaults: one image, a seed chosen by the API, PNG; with SDXL 1.0 `cfg_scale` 7 and 30 steps. Setting an option that
/// the engine does not support is an error; options are never silently ignored.
///
/// ```
/// use stability_client::{Engine, StylePreset, TextToImage};
///
/// let engine: Engine = "core".parse()?;
/// let request = TextToImage::new(engine, engine.dimensions_for(1920, 1080), "A lighthouse at dusk")?
///     .negative_prompt("blurry")?
///     .style_preset(StylePreset::Cinematic)?;
/// let refused = request.steps(40).expect_err("core does not support steps");
/// assert_eq!(refused.to_string(), "steps: 40 is not allowed; not supported by core");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TextToImage {
    engine: Engine,
    dimensions: Dimensions,
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
    /// Creates a request for an image of `prompt`, which must be in English.
    ///
    /// [`Engine::dimensions_for`] returns dimensions that the engine supports.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the prompt is empty or longer than [`Engine::max_prompt_chars`], or the engine does not
    /// support the dimensions.
    pub fn new(engine: Engine, dimensions: Dimensions, prompt: impl Into<String>) -> Result<Self, InvalidRequest> {
        let field = match engine.api_version() {
            ApiVersion::V1 => "size",
            ApiVersion::V2Beta => "aspect_ratio",
        };
        engine.check_dimensions(dimensions).map_err(|allowed| InvalidRequest::new(field, dimensions, allowed))?;
        let text = validate_text(engine, "prompt", prompt.into())?;
        Ok(Self {
            engine,
            dimensions,
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

    /// Adds a prompt with its own weight, below 0 for what the image shall not show. v1 engines only.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the engine does not support weights, the weight is not finite, or the text is empty or too
    /// long.
    pub fn weighted_prompt(mut self, text: impl Into<String>, weight: f64) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::PromptWeights, weight)?;
        if !weight.is_finite() {
            return Err(InvalidRequest::new("text_prompts.weight", weight, "a finite number"));
        }
        let text = validate_text(self.engine, "prompt", text.into())?;
        self.prompts.push(Prompt { text, weight });
        Ok(self)
    }

    /// Sets what the image shall not show; an empty text unsets it. v1 engines receive it as a prompt of weight -1.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the text is longer than [`Engine::max_prompt_chars`].
    pub fn negative_prompt(mut self, text: impl Into<String>) -> Result<Self, InvalidRequest> {
        let text = text.into();
        self.negative_prompt =
            if text.trim().is_empty() { None } else { Some(validate_text(self.engine, "negative_prompt", text)?) };
        Ok(self)
    }

    /// Sets how closely the image follows the prompt: 0 to 35 for SDXL 1.0, 1 to 10 for the `sd3.5` models.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the value is outside [`Engine::cfg_scale_range`], or the engine does not support it.
    pub fn cfg_scale(mut self, cfg_scale: f64) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::CfgScale, cfg_scale)?;
        let range = self.engine.cfg_scale_range().unwrap_or(CFG_SCALE);
        if !range.contains(&cfg_scale) {
            let allowed = format!("a number from {} to {}", range.start(), range.end());
            return Err(InvalidRequest::new("cfg_scale", cfg_scale, allowed));
        }
        self.cfg_scale = Some(cfg_scale);
        Ok(self)
    }

    /// Sets the number of diffusion steps, 10 to 50. v1 engines only.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the value is outside [`STEPS`], or the engine does not support it.
    pub fn steps(mut self, steps: u8) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::Steps, steps)?;
        if !STEPS.contains(&steps) {
            return Err(InvalidRequest::new("steps", steps, "a whole number from 10 to 50"));
        }
        self.steps = Some(steps);
        Ok(self)
    }

    /// Sets how many images are generated, and charged, 1 to 10. v1 engines only.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the value is outside [`SAMPLES`], or the engine does not support it.
    pub fn samples(mut self, samples: u8) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::Samples, samples)?;
        if !SAMPLES.contains(&samples) {
            return Err(InvalidRequest::new("samples", samples, "a whole number from 1 to 10"));
        }
        self.samples = samples;
        Ok(self)
    }

    /// Sets the seed; 0 lets the API choose one. The same request with the same seed generates the same image.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the seed is above [`Engine::max_seed`].
    pub fn seed(mut self, seed: u32) -> Result<Self, InvalidRequest> {
        let max = self.engine.max_seed();
        if seed > max {
            return Err(InvalidRequest::new("seed", seed, format!("a whole number from 0 to {max}")));
        }
        self.seed = seed;
        Ok(self)
    }

    /// Sets the sampler of the diffusion process. v1 engines only.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the engine does not support it.
    pub fn sampler(mut self, sampler: Sampler) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::Sampler, sampler.as_str())?;
        self.sampler = Some(sampler);
        Ok(self)
    }

    /// Sets the preset of CLIP guidance. v1 engines only.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the engine does not support it.
    pub fn clip_guidance(mut self, guidance: ClipGuidance) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::ClipGuidance, guidance.as_str())?;
        self.clip_guidance = Some(guidance);
        Ok(self)
    }

    /// Sets the visual style.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the engine does not support it.
    pub fn style_preset(mut self, preset: StylePreset) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::StylePreset, preset.as_str())?;
        self.style_preset = Some(preset);
        Ok(self)
    }

    /// Sets the file format of the image. Default: PNG. v2beta engines only; the `sd3.5` models do not make WebP.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the engine does not support the option or the format.
    pub fn output_format(mut self, format: OutputFormat) -> Result<Self, InvalidRequest> {
        self.require_support(RequestOption::OutputFormat, format.as_str())?;
        let allowed = self.engine.output_formats();
        if !allowed.contains(&format) {
            let allowed = allowed.iter().map(|format| format.as_str()).collect::<Vec<_>>().join(", ");
            return Err(InvalidRequest::new("output_format", format.as_str(), format!("one of {allowed}")));
        }
        self.output_format = format;
        Ok(self)
    }

    /// Returns the engine of the request.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Returns the main prompt.
    pub fn prompt(&self) -> &str {
        &self.prompts[0].text
    }

    pub(crate) fn to_api_request(&self, format: ResponseFormat) -> ApiRequest<'_> {
        let seed = (self.seed != 0).then_some(self.seed);
        ApiRequest {
            operation: Operation::TextToImage,
            model: self.engine.id(),
            api_version: self.engine.api_version(),
            images: self.samples.into(),
            seed,
            repeats_result: seed.is_some(),
            prompt: Some(self.prompt()),
            http: self.to_http_request(format),
        }
    }

    /// Returns the HTTP request; it requests a response in this format where the API supports it.
    pub(crate) fn to_http_request(&self, format: ResponseFormat) -> HttpRequest {
        let body = match self.engine.api_version() {
            ApiVersion::V1 => HttpBody::Json(v1::body(self)),
            ApiVersion::V2Beta => HttpBody::Form(v2beta::form(self)),
        };
        let accept = match (format, self.engine.api_version()) {
            // Several images are only available as JSON.
            (ResponseFormat::Image, ApiVersion::V1) if self.samples == 1 => "image/png",
            (ResponseFormat::Image, ApiVersion::V2Beta) => "image/*",
            (ResponseFormat::Json | ResponseFormat::Image, _) => "application/json",
        };
        HttpRequest { path: self.engine.path(), body, accept, resend_count: 0 }
    }

    fn require_support(&self, option: RequestOption, value: impl Display) -> Result<(), InvalidRequest> {
        if self.engine.supports(option) {
            return Ok(());
        }
        Err(InvalidRequest::new(option.field(), value, format!("not supported by {}", self.engine)))
    }
}

fn validate_text(engine: Engine, field: &'static str, text: String) -> Result<String, InvalidRequest> {
    let (length, max) = (text.chars().count(), engine.max_prompt_chars());
    if text.trim().is_empty() || length > max {
        let value = format_args!("{length} characters").to_string();
        return Err(InvalidRequest::new(field, value, format!("1 to {max} characters")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
