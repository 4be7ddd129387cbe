use domain::command::JobConfig;
use domain::outcome::ImageState;
use uuid::Uuid;

use super::*;

/// Plans the image of this index, in a job without a project's style.
fn plan_at(index: u32, description: &str, config: JobConfig) -> Result<ImageTask, PlanFailure> {
    let style = config.style();
    plan_in(&style, index, description, config)
}

fn plan_in(style: &Style, index: u32, description: &str, config: JobConfig) -> Result<ImageTask, PlanFailure> {
    let settings = Settings::from_source(|_| None).expect("defaults are good");
    let command =
        Command { job_id: Uuid::nil(), project_id: 1, image_descriptions: vec![description.to_owned()], config };
    let missing = ClaimedImage {
        id: Uuid::nil(),
        index,
        description: description.to_owned(),
        state: ImageState::Untried,
        file_path: None,
        requests: 0,
        charged: 0,
    };
    let mut plan = Planner::new(&settings).plan(&command, style, &English::default(), &[&missing]);
    assert_eq!(plan.tasks.len() + plan.failures.len(), 1);
    plan.tasks.pop().ok_or_else(|| plan.failures.remove(0).1)
}

fn plan(description: &str, config: JobConfig) -> Result<ImageTask, PlanFailure> {
    plan_at(1, description, config)
}

#[test]
fn a_command_without_config_is_planned_with_the_defaults() {
    let ImageTask { recipe, request, .. } = plan("A fox", JobConfig::default()).expect("a plan");
    assert!(recipe.prompt.starts_with("A fox, cinematic lighting, "), "{}", recipe.prompt);
    let frame = Engine::default().frame_for(1920, 1080);
    let expected = TextToImage::new(Engine::default(), frame, recipe.prompt.clone())
        .and_then(|request| request.negative_prompt(DEFAULT_NEGATIVE_PROMPT))
        .and_then(|request| request.cfg_scale(8.0))
        .and_then(|request| request.steps(40))
        .expect("a request");
    assert_eq!(request, expected);
    assert_eq!((recipe.cfg_scale, recipe.steps, recipe.asked_seed), (Some(8.0), Some(40), 0));
    assert_eq!((recipe.english, recipe.left_out.len()), (None, 0));
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
    assert_eq!(planned.recipe.prompt, "A fox");
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
fn a_seed_that_is_not_0_gives_each_image_its_own() {
    let seed = |index, seed| {
        let config = JobConfig { seed: Some(seed), ..JobConfig::default() };
        plan_at(index, "A fox", config).expect("a plan").recipe.asked_seed
    };
    assert_eq!([seed(1, 7), seed(2, 7), seed(200, 7)], [7, 8, 206]);
    assert_eq!(seed(2, 0), 0);
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
fn what_a_project_keeps_is_for_the_engines_that_take_it() {
    let kept = Style { steps: Some(30), cfg_scale: Some(6.0), style_preset: Some("anime".into()), ..Style::default() };
    let recipe = |engine: &str| {
        let config = JobConfig { engine: Some(engine.to_owned()), ..JobConfig::default() };
        plan_in(&kept, 1, "A fox", config).expect("a plan").recipe
    };
    let of = |recipe: Recipe| (recipe.steps, recipe.cfg_scale, recipe.style_preset);
    assert_eq!(of(recipe("stable-diffusion-v1-6")), (Some(30), Some(6.0), Some("anime".to_owned())));
    assert_eq!(of(recipe("core")), (None, None, Some("anime".to_owned())));
    assert_eq!(of(recipe("ultra")), (None, None, None));
}

#[test]
fn chinese_is_never_planned_without_its_english() {
    let check = |description: &str, config: JobConfig, named: &str| {
        let refused = plan(description, config).expect_err("it cannot be planned");
        assert_eq!(refused.code, ImageFailureCode::TranslationUnavailable);
        assert!(refused.message.starts_with(named), "{}", refused.message);
    };
    check("一隻狐狸", JobConfig::default(), "image_descriptions[0]: ");
    let modifiers = Some(vec!["電影感".to_owned()]);
    check("A fox", JobConfig { style_modifiers: modifiers, ..JobConfig::default() }, "style_modifiers: ");
    let negative = Some("模糊".to_owned());
    check("A fox", JobConfig { negative_prompt: negative, ..JobConfig::default() }, "negative_prompt: ");
}

#[test]
fn a_prompt_that_is_too_long_loses_its_modifiers_and_a_description_that_is_too_long_is_refused_by_name() {
    let long = "x".repeat(1_970);
    let recipe = plan(&long, JobConfig::default()).expect("a plan").recipe;
    assert_eq!(recipe.prompt, format!("{long}, cinematic lighting"));
    assert_eq!(recipe.left_out[0], "professional photography");
    assert_eq!(recipe.left_out.len(), 5);
    let refused = plan_at(3, &"x".repeat(2_001), JobConfig::default()).expect_err("longer than 2000");
    assert_eq!(refused.code, ImageFailureCode::RejectedRequest);
    assert_eq!(
        refused.message,
        "image_descriptions[2]: 2001 characters in English is not allowed; the engine takes at most 2000"
    );
    // Another engine takes more.
    let core = JobConfig { engine: Some("core".into()), ..JobConfig::default() };
    assert!(plan(&"x".repeat(2_001), core).is_ok());
}

#[test]
fn a_negative_prompt_that_is_too_long_is_shortened_too() {
    let config = JobConfig { negative_prompt: Some(format!("{}, blurry", "y".repeat(1_995))), ..JobConfig::default() };
    let recipe = plan("A fox", config).expect("a plan").recipe;
    assert_eq!(recipe.negative_prompt, "y".repeat(1_995));
    assert_eq!(recipe.negative_left_out, ["blurry"]);
}

#[test]
fn a_description_of_nothing_but_commas_buys_no_picture() {
    let refused = plan("，, ,", JobConfig::default()).expect_err("it says nothing");
    assert_eq!(refused.message, "image_descriptions[0]: \"，, ,\" is not allowed; a text that says something");
}

#[test]
fn a_seed_that_the_engine_does_not_take_is_refused_by_name() {
    let config = JobConfig { engine: Some("core".into()), seed: Some(u32::MAX), ..JobConfig::default() };
    let refused = plan("A fox", config).expect_err("core takes one less");
    assert_eq!(refused.message, "seed: 4294967295 is not allowed; a whole number from 0 to 4294967294");
}
