//! What is asked of the API for an image.

use domain::command::Command;
use domain::failure::ImageFailureCode;
use domain::prompt::{DEFAULT_NEGATIVE_PROMPT, enhance_prompt, needs_translation};
use stability_client::{Engine, Family, InvalidRequest, StylePreset, TextToImage};

use crate::settings::Settings;

/// The defaults that requests are made with.
pub(super) struct Planner {
    width: u32,
    height: u32,
    cfg_scale: f64,
    steps: u8,
}

/// An image that can be asked for.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) prompt: String,
    pub(super) request: TextToImage,
}

/// An image that cannot be asked for.
#[derive(Debug, PartialEq)]
pub(super) struct Unplannable {
    pub(super) code: ImageFailureCode,
    pub(super) message: String,
}

impl From<InvalidRequest> for Unplannable {
    fn from(error: InvalidRequest) -> Self {
        Self { code: ImageFailureCode::RejectedRequest, message: error.to_string() }
    }
}

impl Planner {
    pub(super) fn new(settings: &Settings) -> Self {
        let (width, height) = (settings.image.width, settings.image.height);
        Self { width, height, cfg_scale: settings.cfg_scale, steps: settings.steps }
    }

    /// Composes the prompt of one description and checks the request against the API's ranges.
    pub(super) fn plan(&self, command: &Command, description: &str) -> Result<Plan, Unplannable> {
        let config = &command.config;
        let prompt = enhance_prompt(description, config.style_modifiers.as_deref());
        let negative = config.negative_prompt.as_deref().unwrap_or(DEFAULT_NEGATIVE_PROMPT);
        if needs_translation(&prompt) || needs_translation(negative) {
            return Err(Unplannable {
                code: ImageFailureCode::TranslationUnavailable,
                message: "the text is not English, and there is no translator".to_owned(),
            });
        }
        let engine = config.engine.as_deref().map_or(Ok(Engine::default()), str::parse);
        let engine = engine.map_err(|error| rejected(&error))?;
        let preset = config.style_preset.as_deref().map(str::parse::<StylePreset>).transpose();
        let preset = preset.map_err(|error| rejected(&error))?;
        let mut request = TextToImage::new(engine, engine.frame_for(self.width, self.height), prompt.clone())?
            .negative_prompt(negative)?
            .seed(config.seed.unwrap_or(0))?;
        // Our own defaults are for the engines that take them; what the command asks for is refused where it cannot be had.
        let ours = engine.family() == Family::V1;
        if let Some(cfg_scale) = config.cfg_scale.or(ours.then_some(self.cfg_scale)) {
            request = request.cfg_scale(cfg_scale)?;
        }
        if let Some(steps) = config.steps.or(ours.then_some(self.steps)) {
            request = request.steps(steps)?;
        }
        if let Some(preset) = preset {
            request = request.style_preset(preset)?;
        }
        Ok(Plan { prompt, request })
    }
}

/// Names are checked when the command is read, so that this is met only where the two disagree.
fn rejected(error: &impl ToString) -> Unplannable {
    Unplannable { code: ImageFailureCode::RejectedRequest, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use domain::command::JobConfig;
    use uuid::Uuid;

    use super::*;

    fn plan(description: &str, config: JobConfig) -> Result<Plan, Unplannable> {
        let settings = Settings::from_source(|_| None).expect("defaults are good");
        let command =
            Command { job_id: Uuid::nil(), project_id: 1, image_descriptions: vec![description.to_owned()], config };
        Planner::new(&settings).plan(&command, description)
    }

    #[test]
    fn a_command_without_config_is_planned_with_the_defaults() {
        let planned = plan("A fox", JobConfig::default()).expect("a plan");
        assert!(planned.prompt.starts_with("A fox, cinematic lighting, "), "{}", planned.prompt);
        let frame = Engine::default().frame_for(1920, 1080);
        let expected = TextToImage::new(Engine::default(), frame, planned.prompt.clone())
            .and_then(|request| request.negative_prompt(DEFAULT_NEGATIVE_PROMPT))
            .and_then(|request| request.cfg_scale(8.0))
            .and_then(|request| request.steps(40))
            .expect("a request");
        assert_eq!(planned.request, expected);
    }

    #[test]
    fn the_commands_config_wins() {
        let config = JobConfig {
            style_modifiers: Some(vec![]),
            negative_prompt: Some(String::new()),
            style_preset: Some("anime".into()),
            cfg_scale: Some(5.0),
            steps: Some(10),
            seed: Some(7),
            ..JobConfig::default()
        };
        let planned = plan("A fox", config).expect("a plan");
        assert_eq!(planned.prompt, "A fox");
        let frame = Engine::default().frame_for(1920, 1080);
        let expected = TextToImage::new(Engine::default(), frame, "A fox")
            .and_then(|request| request.cfg_scale(5.0))
            .and_then(|request| request.steps(10))
            .and_then(|request| request.seed(7))
            .and_then(|request| request.style_preset(StylePreset::Anime))
            .expect("a request");
        assert_eq!(planned.request, expected);
    }

    #[test]
    fn another_engine_is_asked_for_by_name_and_only_for_what_it_takes() {
        let core = || JobConfig { engine: Some("core".into()), style_modifiers: Some(vec![]), ..JobConfig::default() };
        let planned = plan("A fox", core()).expect("a plan");
        let expected = TextToImage::new(Engine::Core, Engine::Core.frame_for(1920, 1080), "A fox")
            .and_then(|request| request.negative_prompt(DEFAULT_NEGATIVE_PROMPT))
            .expect("a request");
        assert_eq!(planned.request, expected);
        let refused = plan("A fox", JobConfig { steps: Some(40), ..core() }).expect_err("core takes no steps");
        assert_eq!(refused.code, ImageFailureCode::RejectedRequest);
        assert_eq!(refused.message, "steps: 40 is not allowed; not taken by core");
    }

    #[test]
    fn chinese_is_never_sent() {
        let chinese = |config| plan("A fox", config).expect_err("it cannot be planned").code;
        assert_eq!(
            plan("一隻狐狸", JobConfig::default()).expect_err("Chinese").code,
            ImageFailureCode::TranslationUnavailable
        );
        let modifiers = Some(vec!["電影感".to_owned()]);
        assert_eq!(
            chinese(JobConfig { style_modifiers: modifiers, ..JobConfig::default() }),
            ImageFailureCode::TranslationUnavailable
        );
        let negative = Some("模糊".to_owned());
        assert_eq!(
            chinese(JobConfig { negative_prompt: negative, ..JobConfig::default() }),
            ImageFailureCode::TranslationUnavailable
        );
    }

    #[test]
    fn a_prompt_that_is_too_long_is_refused_by_name() {
        let refused = plan(&"x".repeat(2_000), JobConfig::default()).expect_err("modifiers make it longer than 2000");
        assert_eq!(refused.code, ImageFailureCode::RejectedRequest);
        assert!(refused.message.starts_with("prompt: 2"), "{}", refused.message);
    }
}
