//! Plans an attempt: what is asked of the API for each missing image.

use domain::command::Command;
use domain::failure::ImageFailureCode;
use domain::image_spec::ImageSpec;
use domain::prompt::{Composed, DEFAULT_NEGATIVE_PROMPT, TooLong, compose, shortened};
use domain::recipe::Recipe;
use domain::seed;
use domain::style::Style;
use gemini_client::Untranslated;
use stability_client::{Engine, Family, InvalidRequest, StylePreset, TextToImage, UnknownName};
use store::ClaimedImage;
use tracing::warn;

use crate::image::ImageTask;
use crate::settings::Settings;
use crate::translation::English;

/// The defaults that requests are made with.
pub(super) struct Planner {
    spec: ImageSpec,
    cfg_scale: f64,
    steps: u8,
}

/// What an attempt makes, and what it cannot make.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) tasks: Vec<ImageTask>,
    /// By index.
    pub(super) failures: Vec<(u32, PlanFailure)>,
}

/// Why an image cannot be asked for.
#[derive(Debug, PartialEq)]
pub(super) struct PlanFailure {
    pub(super) code: ImageFailureCode,
    pub(super) message: String,
    pub(super) retryable: bool,
}

impl PlanFailure {
    fn rejected(message: String) -> Self {
        Self { code: ImageFailureCode::RejectedRequest, message, retryable: false }
    }

    fn too_long(what: &str, TooLong { chars, max_chars }: &TooLong) -> Self {
        Self::rejected(format!(
            "{what}: {chars} characters in English is not allowed; the engine takes at most {max_chars}"
        ))
    }

    fn untranslated(what: &str, why: &Untranslated) -> Self {
        Self {
            code: ImageFailureCode::TranslationUnavailable,
            message: format!("{what}: {why}"),
            retryable: why.may_pass(),
        }
    }
}

impl From<InvalidRequest> for PlanFailure {
    fn from(error: InvalidRequest) -> Self {
        Self::rejected(error.to_string())
    }
}

/// The texts of a style that may have to be translated.
pub(super) fn texts(style: &Style) -> impl Iterator<Item = &str> {
    style.style_modifiers.iter().flatten().chain(&style.negative_prompt).map(String::as_str)
}

impl Planner {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { spec: settings.image, cfg_scale: settings.cfg_scale, steps: settings.steps }
    }

    /// Composes the prompts of missing images and checks their requests against the API's ranges.
    pub(super) fn plan(&self, command: &Command, style: &Style, english: &English, missing: &[&ClaimedImage]) -> Plan {
        let mut plan = Plan { tasks: Vec::new(), failures: Vec::new() };
        for ClaimedImage { id, index, description, file_path, .. } in missing {
            let (id, index) = (*id, *index);
            match self.plan_image(command, style, english, index, description) {
                Ok((recipe, request)) => {
                    let Recipe { left_out, negative_left_out, .. } = &recipe;
                    if !left_out.is_empty() || !negative_left_out.is_empty() {
                        let (left_out, negative_left_out) = (left_out.join(", "), negative_left_out.join(", "));
                        warn!(index, left_out, negative_left_out, "the prompt was shortened");
                    }
                    let fingerprint = recipe.fingerprint(&self.spec);
                    let (description, reserved_path) = (description.clone(), file_path.clone());
                    plan.tasks.push(ImageTask { id, index, description, reserved_path, recipe, request, fingerprint });
                }
                Err(failure) => plan.failures.push((index, failure)),
            }
        }
        plan
    }

    fn plan_image(
        &self,
        command: &Command,
        style: &Style,
        english: &English,
        index: u32,
        description: &str,
    ) -> Result<(Recipe, TextToImage), PlanFailure> {
        let config = &command.config;
        let engine = config.engine.as_deref().map_or(Ok(Engine::default()), str::parse);
        let engine = engine.map_err(|error: UnknownName| PlanFailure::rejected(error.to_string()))?;
        let mut recipe = Recipe { engine: engine.id().to_owned(), ..Recipe::default() };
        write(&mut recipe, engine, style, english, index, description)?;
        recipe.asked_seed = seed::of_image(config.seed.unwrap_or(0), index, engine.max_seed());

        let frame = engine.frame_for(self.spec.width, self.spec.height);
        let mut request = TextToImage::new(engine, frame, recipe.prompt.clone())?
            .negative_prompt(&recipe.negative_prompt)?
            .seed(recipe.asked_seed)?;
        // What the command asks for is refused where it cannot be had; what project and worker keep is for the engines that take it.
        let ours = engine.family() == Family::V1;
        let said = config.style();
        let cfg_scale = style.cfg_scale.or(ours.then_some(self.cfg_scale));
        let steps = style.steps.or(ours.then_some(self.steps));
        (request, recipe.cfg_scale) = with(request, said.cfg_scale, cfg_scale, TextToImage::cfg_scale)?;
        (request, recipe.steps) = with(request, said.steps, steps, TextToImage::steps)?;
        (request, recipe.style_preset) = with(request, said.style_preset, style.style_preset.clone(), preset)?;
        Ok((recipe, request))
    }
}

/// The texts of a recipe, in English, as far as the engine takes them.
fn write(
    recipe: &mut Recipe,
    engine: Engine,
    style: &Style,
    english: &English,
    index: u32,
    description: &str,
) -> Result<(), PlanFailure> {
    let translated = |what: &str, text: &str| english.of(text).map_err(|why| PlanFailure::untranslated(what, &why));
    // Named as the command has it, which counts from 0.
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
    let prompt = prompt.map_err(|error| PlanFailure::too_long(&name, &error))?;
    if compose(&text, Some(&[]), max_chars).is_ok_and(|alone| alone.text.is_empty()) {
        return Err(PlanFailure::rejected(format!("{name}: {text:?} is not allowed; a text that says something")));
    }
    let negative = shortened(&negative, max_chars);
    let negative = negative.map_err(|error| PlanFailure::too_long("negative_prompt", &error))?;
    recipe.english = (text != description).then_some(text);
    let Composed { text, left_out } = prompt;
    recipe.prompt = text;
    recipe.left_out = left_out;
    recipe.negative_prompt = negative.text;
    recipe.negative_left_out = negative.left_out;
    Ok(())
}

fn preset(request: TextToImage, name: String) -> Result<TextToImage, InvalidRequest> {
    // Names are checked when the command or the style is read, so that an unknown one is met only where the two disagree.
    let preset = name.parse::<StylePreset>().map_err(|error| InvalidRequest {
        field: "style_preset",
        value: name,
        allowed: error.to_string(),
    })?;
    request.style_preset(preset)
}

/// Sets what is `said`, or else what is `kept` where the engine takes it; returns what was set.
fn with<T: Clone>(
    request: TextToImage,
    said: Option<T>,
    kept: Option<T>,
    set: impl Fn(TextToImage, T) -> Result<TextToImage, InvalidRequest>,
) -> Result<(TextToImage, Option<T>), InvalidRequest> {
    if let Some(value) = said {
        return Ok((set(request, value.clone())?, Some(value)));
    }
    let Some(value) = kept else { return Ok((request, None)) };
    match set(request.clone(), value.clone()) {
        Ok(request) => Ok((request, Some(value))),
        Err(_) => Ok((request, None)),
    }
}

#[cfg(test)]
mod tests;
