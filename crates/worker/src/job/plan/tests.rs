use domain::command::JobConfig;
use domain::outcome::ImageState;
use uuid::Uuid;

use super::*;

/// Plans the image with this index, in a project without a style.
fn plan_with_index(index: u32, description: &str, config: JobConfig) -> Result<ImageTask, PlanFailure> {
    let style = config.style();
    plan_with_style(&style, index, description, config)
}

fn plan_with_style(style: &Style, index: u32, description: &str, config: JobConfig) -> Result<ImageTask, PlanFailure> {
    let settings = Settings::from_source(|_| None).expect("default settings are valid");
    let engine = config.engine.clone().unwrap_or_else(|| Engine::default().id().to_owned());
    let command =
        Command { job_id: Uuid::nil(), project_id: 1, image_descriptions: vec![description.to_owned()], config };
    let missing = ClaimedImage {
        seed_index: index,
        id: Uuid::nil(),
        index,
        description: description.to_owned(),
        state: ImageState::Untried,
        file_path: None,
        requests: 0,
    };
    let mut plan = Planner::new(&settings).plan(&command, &engine, style, &Translations::default(), &[&missing]);
    assert_eq!(plan.tasks.len() + plan.failures.len(), 1);
    plan.tasks.pop().ok_or_else(|| plan.failures.remove(0).1)
}

fn plan(description: &str, config: JobConfig) -> Result<ImageTask, PlanFailure> {
    plan_with_index(1, description, config)
}

#[test]
fn command_without_config_is_planned_with_defaults() {
    let ImageTask { params, request, .. } = plan("A fox", JobConfig::default()).expect("image can be planned");
    assert!(params.prompt.starts_with("A fox, cinematic lighting, "), "{}", params.prompt);
    let frame = Engine::default().dimensions_for(1920, 1080);
    let expected = TextToImage::new(Engine::default(), frame, params.prompt.clone())
        .and_then(|request| request.negative_prompt(DEFAULT_NEGATIVE_PROMPT))
        .and_then(|request| request.cfg_scale(8.0))
        .and_then(|request| request.steps(40))
        .expect("valid request");
    assert_eq!(request, expected);
    assert_eq!((params.cfg_scale, params.steps, params.requested_seed), (Some(8.0), Some(40), 0));
    assert_eq!((params.english, params.left_out.len()), (None, 0));
}

#[test]
fn command_config_overrides_defaults() {
    let config = JobConfig {
        style_modifiers: Some(vec![]),
        negative_prompt: Some(String::new()),
        style_preset: Some("anime".into()),
        cfg_scale: Some(5.0),
        steps: Some(10),
        seed: Some(7),
        ..JobConfig::default()
    };
    let planned = plan("A fox", config).expect("image can be planned");
    assert_eq!(planned.params.prompt, "A fox");
    let frame = Engine::default().dimensions_for(1920, 1080);
    let expected = TextToImage::new(Engine::default(), frame, "A fox")
        .and_then(|request| request.cfg_scale(5.0))
        .and_then(|request| request.steps(10))
        .and_then(|request| request.seed(7))
        .and_then(|request| request.style_preset(StylePreset::Anime))
        .expect("valid request");
    assert_eq!(planned.request, expected);
}

#[test]
fn nonzero_seed_gives_each_image_a_distinct_seed() {
    let seed = |index, seed| {
        let config = JobConfig { seed: Some(seed), ..JobConfig::default() };
        plan_with_index(index, "A fox", config).expect("image can be planned").params.requested_seed
    };
    assert_eq!([seed(1, 7), seed(2, 7), seed(200, 7)], [7, 8, 206]);
    assert_eq!(seed(2, 0), 0);
}

#[test]
fn engine_omits_unsupported_defaults_and_rejects_unsupported_parameters() {
    let core = || JobConfig { engine: Some("core".into()), style_modifiers: Some(vec![]), ..JobConfig::default() };
    let planned = plan("A fox", core()).expect("image can be planned");
    let expected = TextToImage::new(Engine::Core, Engine::Core.dimensions_for(1920, 1080), "A fox")
        .and_then(|request| request.negative_prompt(DEFAULT_NEGATIVE_PROMPT))
        .expect("valid request");
    assert_eq!(planned.request, expected);
    let refused = plan("A fox", JobConfig { steps: Some(40), ..core() }).expect_err("core takes no steps");
    assert_eq!(refused.code, ImageFailureCode::RejectedRequest);
    assert_eq!(refused.message, "steps: 40 is not allowed; not supported by core");
}

#[test]
fn project_style_applies_only_where_engine_supports_it() {
    let project_style =
        Style { steps: Some(30), cfg_scale: Some(6.0), style_preset: Some("anime".into()), ..Style::default() };
    let plan_for_engine = |engine: &str| {
        let config = JobConfig { engine: Some(engine.to_owned()), ..JobConfig::default() };
        plan_with_style(&project_style, 1, "A fox", config).expect("image can be planned").params
    };
    let style_settings = |plan_for_engine: GenerationParams| {
        (plan_for_engine.steps, plan_for_engine.cfg_scale, plan_for_engine.style_preset)
    };
    assert_eq!(
        style_settings(plan_for_engine("stable-diffusion-xl-1024-v1-0")),
        (Some(30), Some(6.0), Some("anime".to_owned()))
    );
    assert_eq!(style_settings(plan_for_engine("core")), (None, None, Some("anime".to_owned())));
    assert_eq!(plan_for_engine("core").style_left_out, ["cfg_scale: 6", "steps: 30"]);
    assert_eq!(plan_for_engine("sd3.5-large").style_left_out, ["steps: 30"]);
    assert!(plan_for_engine("stable-diffusion-xl-1024-v1-0").style_left_out.is_empty());
    assert_eq!(style_settings(plan_for_engine("ultra")), (None, None, Some("anime".to_owned())));
    assert_eq!(style_settings(plan_for_engine("sd3.5-flash")), (None, Some(6.0), Some("anime".to_owned())));
}

#[test]
fn untranslated_chinese_text_fails_planning() {
    let check = |description: &str, config: JobConfig, expected_prefix: &str| {
        let refused = plan(description, config).expect_err("untranslated text is rejected");
        assert_eq!(refused.code, ImageFailureCode::TranslationUnavailable);
        assert!(refused.message.starts_with(expected_prefix), "{}", refused.message);
    };
    check("一隻狐狸", JobConfig::default(), "image_descriptions[0]: ");
    let modifiers = Some(vec!["電影感".to_owned()]);
    check("A fox", JobConfig { style_modifiers: modifiers, ..JobConfig::default() }, "style_modifiers: ");
    let negative = Some("模糊".to_owned());
    check("A fox", JobConfig { negative_prompt: negative, ..JobConfig::default() }, "negative_prompt: ");
}

#[test]
fn prompt_drops_modifiers_and_description_is_rejected_if_too_long() {
    let long = "x".repeat(1_970);
    let params = plan(&long, JobConfig::default()).expect("image can be planned").params;
    assert_eq!(params.prompt, format!("{long}, cinematic lighting"));
    assert_eq!(params.left_out[0], "professional photography");
    assert_eq!(params.left_out.len(), 5);
    let refused = plan_with_index(3, &"x".repeat(2_001), JobConfig::default()).expect_err("longer than 2000");
    assert_eq!(refused.code, ImageFailureCode::RejectedRequest);
    assert_eq!(
        refused.message,
        "image_descriptions[2]: 2001 characters in English is not allowed; the engine takes at most 2000"
    );
    // Core takes longer prompts.
    let core = JobConfig { engine: Some("core".into()), ..JobConfig::default() };
    assert!(plan(&"x".repeat(2_001), core).is_ok());
}

#[test]
fn too_long_negative_prompt_is_shortened() {
    let config = JobConfig { negative_prompt: Some(format!("{}, blurry", "y".repeat(1_995))), ..JobConfig::default() };
    let params = plan("A fox", config).expect("image can be planned").params;
    assert_eq!(params.negative_prompt, "y".repeat(1_995));
    assert_eq!(params.negative_left_out, ["blurry"]);
}

#[test]
fn description_of_only_commas_is_rejected() {
    let refused = plan("，, ,", JobConfig::default()).expect_err("description of only commas is rejected");
    assert_eq!(refused.message, "image_descriptions[0]: \"，, ,\" is not allowed; it contains no words");
}

#[test]
fn seed_above_engine_maximum_is_rejected() {
    let config = JobConfig { engine: Some("core".into()), seed: Some(u32::MAX), ..JobConfig::default() };
    let refused = plan("A fox", config).expect_err("seed above core's maximum is rejected");
    assert_eq!(refused.message, "seed: 4294967295 is not allowed; a whole number from 0 to 4294967294");
}
