//! Plans an attempt: composes the prompt and the API request of each missing image.

use domain::command::Command;
use domain::failure::ImageFailureCode;
use domain::generation_params::GenerationParams;
use domain::image_spec::ImageSpec;
use domain::prompt::{ComposedPrompt, DEFAULT_NEGATIVE_PROMPT, PromptTooLong, compose, says_something, shorten_list};
use domain::seed;
use domain::style::Style;
use domain::upscaler::Upscaler;
use gemini_client::TranslationError;
use stability_client::{ApiVersion, Engine, InvalidRequest, StylePreset, TextToImage, UnknownName};
use store::ClaimedImage;
use tracing::warn;

use crate::image::ImageTask;
use crate::settings::Settings;
use crate::translation::Translations;

/// Plans images with the worker's default parameters.
pub(crate) struct Planner {
    spec: ImageSpec,
    cfg_scale: f64,
    steps: u8,
}

/// The images that can be requested, and those that cannot.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) tasks: Vec<ImageTask>,
    /// Each failure with the index of its image.
    pub(crate) failures: Vec<(u32, PlanFailure)>,
}

/// Why an image cannot be requested.
#[derive(Debug, PartialEq)]
pub(crate) struct PlanFailure {
    pub(crate) code: ImageFailureCode,
    pub(crate) message: String,
    pub(crate) retryable: bool,
}

impl PlanFailure {
    fn from_rejected(message: String) -> Self {
        Self { code: ImageFailureCode::RejectedRequest, message, retryable: false }
    }

    fn from_too_long(field: &str, PromptTooLong { chars, max_chars }: &PromptTooLong) -> Self {
        Self::from_rejected(format!(
            "{field}: {chars} characters in English is not allowed; the engine takes at most {max_chars}"
        ))
    }

    fn from_untranslated(field: &str, error: &TranslationError) -> Self {
        Self {
            code: ImageFailureCode::TranslationUnavailable,
            message: format!("{field}: {error}"),
            retryable: error.is_retryable(),
        }
    }
}

impl From<InvalidRequest> for PlanFailure {
    fn from(error: InvalidRequest) -> Self {
        Self::from_rejected(error.to_string())
    }
}

/// The texts of a style that may need translation.
pub(crate) fn style_texts(style: &Style) -> impl Iterator<Item = &str> {
    style.style_modifiers.iter().flatten().chain(&style.negative_prompt).map(String::as_str)
}

/// Why the job's upscaler does not take the images of its engine. Of an engine that the command names, this is known when
/// it is parsed; of the worker's default engine it is not.
pub(crate) fn upscaler_conflict(command: &Command, engine: &str) -> Option<String> {
    let fits = engine.parse().is_ok_and(|engine: Engine| engine.fits_fast_upscaler());
    (command.config.upscaler == Some(Upscaler::Fast) && !fits).then(|| {
        format!("config.upscaler: \"fast\" is not allowed; the fast upscaler does not take the images of {engine}")
    })
}

impl Planner {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { spec: settings.image, cfg_scale: settings.cfg_scale, steps: settings.steps }
    }

    /// Composes the prompts of missing images and checks their requests against the API's ranges.
    pub(crate) fn plan(
        &self,
        command: &Command,
        engine: &str,
        style: &Style,
        english: &Translations,
        missing: &[&ClaimedImage],
    ) -> Plan {
        let mut plan = Plan { tasks: Vec::new(), failures: Vec::new() };
        for ClaimedImage { id, index, seed_index, description, file_path, .. } in missing {
            let (id, index) = (*id, *index);
            match self.plan_image(command, engine, style, english, (index, *seed_index), description) {
                Ok((params, request)) => {
                    let GenerationParams { left_out, negative_left_out, .. } = &params;
                    if !left_out.is_empty() || !negative_left_out.is_empty() {
                        let (left_out, negative_left_out) = (left_out.join(", "), negative_left_out.join(", "));
                        warn!(index, left_out, negative_left_out, "the prompt was shortened");
                    }
                    if !params.style_left_out.is_empty() {
                        let (left_out, engine) = (params.style_left_out.join(", "), params.engine.as_str());
                        warn!(
                            index,
                            left_out, engine, "the engine does not take these settings of the project's style"
                        );
                    }
                    let fingerprint = params.fingerprint(&self.spec);
                    let (description, reserved_path) = (description.clone(), file_path.clone());
                    plan.tasks.push(ImageTask { id, index, description, reserved_path, params, request, fingerprint });
                }
                Err(failure) => plan.failures.push((index, failure)),
            }
        }
        plan
    }

    fn plan_image(
        &self,
        command: &Command,
        engine: &str,
        style: &Style,
        english: &Translations,
        (index, seed_index): (u32, u32),
        description: &str,
    ) -> Result<(GenerationParams, TextToImage), PlanFailure> {
        let config = &command.config;
        let engine: Engine =
            engine.parse().map_err(|error: UnknownName| PlanFailure::from_rejected(error.to_string()))?;
        let mut params = GenerationParams { engine: engine.id().to_owned(), ..GenerationParams::default() };
        compose_prompts(&mut params, engine, style, english, index, description)?;
        params.upscaler = config.upscaler.unwrap_or_default();
        params.requested_seed = seed::image_seed(config.seed.unwrap_or(0), seed_index, engine.max_seed());

        let dimensions = engine.dimensions_for(self.spec.width, self.spec.height);
        let mut request = TextToImage::new(engine, dimensions, params.prompt.clone())?
            .negative_prompt(&params.negative_prompt)?
            .seed(params.requested_seed)?;
        // A parameter of the command that the engine does not take is rejected; one of project or worker is omitted.
        let takes_worker_defaults = engine.api_version() == ApiVersion::V1;
        let requested = config.style();
        let cfg_scale = style.cfg_scale.or(takes_worker_defaults.then_some(self.cfg_scale));
        let steps = style.steps.or(takes_worker_defaults.then_some(self.steps));
        let left_out = &mut params.style_left_out;
        (request, params.cfg_scale) =
            set_or_default(request, requested.cfg_scale, cfg_scale, TextToImage::cfg_scale, left_out)?;
        (request, params.steps) = set_or_default(request, requested.steps, steps, TextToImage::steps, left_out)?;
        let style_preset = style.style_preset.clone();
        (request, params.style_preset) =
            set_or_default(request, requested.style_preset, style_preset, set_style_preset, left_out)?;
        Ok((params, request))
    }
}

/// Sets the English texts of the generation parameters, shortened to the engine's limit.
fn compose_prompts(
    params: &mut GenerationParams,
    engine: Engine,
    style: &Style,
    english: &Translations,
    index: u32,
    description: &str,
) -> Result<(), PlanFailure> {
    let translated =
        |what: &str, text: &str| english.get(text).map_err(|why| PlanFailure::from_untranslated(what, &why));
    // The field name as in the command, whose list starts at 0.
    let name = format!("image_descriptions[{}]", index.saturating_sub(1));
    let text = translated(&name, description)?;
    let modifiers = style.style_modifiers.as_ref().map(|modifiers| {
        modifiers.iter().map(|modifier| translated("style_modifiers", modifier)).collect::<Result<Vec<_>, _>>()
    });
    let modifiers = modifiers.transpose()?;
    let negative = style.negative_prompt.as_deref().unwrap_or(DEFAULT_NEGATIVE_PROMPT);
    let negative = translated("negative_prompt", negative)?;

    let max_chars = engine.max_prompt_chars();
    let prompt = compose(&text, modifiers.as_deref(), max_chars);
    let prompt = prompt.map_err(|error| PlanFailure::from_too_long(&name, &error))?;
    if !says_something(&text) {
        return Err(PlanFailure::from_rejected(format!("{name}: {text:?} is not allowed; it contains no words")));
    }
    let negative = shorten_list(&negative, max_chars);
    let negative = negative.map_err(|error| PlanFailure::from_too_long("negative_prompt", &error))?;
    params.english = (text != description).then_some(text);
    let ComposedPrompt { text, left_out } = prompt;
    params.prompt = text;
    params.left_out = left_out;
    params.negative_prompt = negative.text;
    params.negative_left_out = negative.left_out;
    Ok(())
}

fn set_style_preset(request: TextToImage, name: String) -> Result<TextToImage, InvalidRequest> {
    // Names are checked when the command or the style is parsed: this fails only if that check and this one differ.
    let preset =
        name.parse::<StylePreset>().map_err(|error| InvalidRequest::new("style_preset", name, error.to_string()))?;
    request.style_preset(preset)
}

/// Sets the `requested` value, or else the `default` if the engine takes it; returns the value that was set. A default
/// that the engine does not take is added to `left_out`.
fn set_or_default<T: Clone>(
    request: TextToImage,
    requested: Option<T>,
    default: Option<T>,
    set: impl Fn(TextToImage, T) -> Result<TextToImage, InvalidRequest>,
    left_out: &mut Vec<String>,
) -> Result<(TextToImage, Option<T>), InvalidRequest> {
    if let Some(value) = requested {
        return Ok((set(request, value.clone())?, Some(value)));
    }
    let Some(value) = default else { return Ok((request, None)) };
    match set(request.clone(), value.clone()) {
        Ok(request) => Ok((request, Some(value))),
        Err(InvalidRequest { field, value, .. }) => {
            left_out.push(format!("{field}: {value}"));
            Ok((request, None))
        }
    }
}

#[cfg(test)]
mod tests;
