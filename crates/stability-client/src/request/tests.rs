use serde_json::{Value, json};

use super::*;
use crate::dimensions::Size;
use crate::options::AspectRatio;
use crate::wire::FormValue;

fn request(engine: Engine) -> TextToImage {
    TextToImage::new(engine, engine.dimensions_for(1920, 1080), "A fox").expect("a valid request")
}

fn json_body(request: &TextToImage) -> Value {
    match request.to_http_request(ResponseFormat::Json).body {
        HttpBody::Json(body) => body,
        other => panic!("the body is not JSON: {other:?}"),
    }
}

fn text(value: FormValue) -> String {
    let FormValue::Text(text) = value else { panic!("the field is a text") };
    text
}

fn form_fields(request: &TextToImage) -> Vec<(&'static str, String)> {
    match request.to_http_request(ResponseFormat::Json).body {
        HttpBody::Form(form) => form.into_iter().map(|(name, value)| (name, text(value))).collect(),
        other => panic!("the body is not a form: {other:?}"),
    }
}

/// A request with all options that v1 engines support.
fn full_request(engine: Engine) -> Result<TextToImage, InvalidRequest> {
    request(engine)
        .weighted_prompt("snow", 0.5)?
        .negative_prompt("blurry")?
        .cfg_scale(8.0)?
        .steps(40)?
        .samples(2)?
        .seed(7)?
        .sampler(Sampler::KEuler)?
        .clip_guidance(ClipGuidance::Simple)?
        .style_preset(StylePreset::ThreeDModel)
}

#[test]
fn v1_body_holds_every_option() {
    let request = full_request(Engine::Sdxl10).expect("a valid request");
    assert_eq!(
        json_body(&request),
        json!({
            "text_prompts": [
                {"text": "A fox", "weight": 1.0}, {"text": "snow", "weight": 0.5}, {"text": "blurry", "weight": -1.0},
            ],
            "width": 1344, "height": 768, "cfg_scale": 8.0, "steps": 40, "samples": 2, "seed": 7,
            "sampler": "K_EULER", "clip_guidance_preset": "SIMPLE", "style_preset": "3d-model",
        })
    );
    let call = request.to_http_request(ResponseFormat::Image);
    assert_eq!(call.path, "v1/generation/stable-diffusion-xl-1024-v1-0/text-to-image");
    assert_eq!(call.accept, "application/json", "two images are only available as JSON");
}

#[test]
fn unset_options_are_left_out_of_the_body() {
    let request = request(Engine::Sdxl10).negative_prompt("  ").expect("an empty negative prompt is allowed");
    let expected = json!({
        "text_prompts": [{"text": "A fox", "weight": 1.0}], "width": 1344, "height": 768, "samples": 1, "seed": 0,
    });
    assert_eq!(json_body(&request), expected);
    assert_eq!(request.to_http_request(ResponseFormat::Image).accept, "image/png");
    assert_eq!(request.to_http_request(ResponseFormat::Json).accept, "application/json");
}

#[test]
fn v2beta_form_holds_every_option() {
    let with = request(Engine::Core)
        .negative_prompt("blurry")
        .and_then(|request| request.seed(7))
        .and_then(|request| request.style_preset(StylePreset::Anime))
        .and_then(|request| request.output_format(OutputFormat::Webp))
        .expect("a valid request");
    let owned = |fields: &[(&'static str, &str)]| -> Vec<_> {
        fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
    };
    assert_eq!(
        form_fields(&with),
        owned(&[
            ("prompt", "A fox"),
            ("seed", "7"),
            ("output_format", "webp"),
            ("aspect_ratio", "16:9"),
            ("negative_prompt", "blurry"),
            ("style_preset", "anime"),
        ])
    );
    let plain = request(Engine::Sd35Medium);
    assert_eq!(
        form_fields(&plain),
        owned(&[
            ("prompt", "A fox"),
            ("seed", "0"),
            ("output_format", "png"),
            ("aspect_ratio", "16:9"),
            ("model", "sd3.5-medium"),
        ])
    );
    let path = |engine: Engine| request(engine).to_http_request(ResponseFormat::Image).path;
    assert_eq!(path(Engine::Core), "v2beta/stable-image/generate/core");
    assert_eq!(path(Engine::Ultra), "v2beta/stable-image/generate/ultra");
    assert_eq!(path(Engine::Sd35Large), "v2beta/stable-image/generate/sd3");
    assert_eq!(plain.to_http_request(ResponseFormat::Image).accept, "image/*");
}

#[test]
fn out_of_range_values_are_refused() {
    let check = |result: Result<TextToImage, InvalidRequest>, expected: &str| {
        assert_eq!(result.expect_err(expected).to_string(), expected);
    };
    let v1 = || request(Engine::Sdxl10);
    let new = |engine: Engine, prompt: &str| TextToImage::new(engine, engine.dimensions_for(16, 9), prompt);
    let full_hd = Dimensions::Size(Size { width: 1920, height: 1080 });
    check(
        TextToImage::new(Engine::Sdxl10, full_hd, "A fox"),
        "size: 1920x1080 is not allowed; one of 1024x1024, 1152x896, 1216x832, 1344x768, 1536x640, 640x1536, 768x1344, 832x1216, 896x1152",
    );
    check(
        TextToImage::new(Engine::Core, full_hd, "A fox"),
        "aspect_ratio: 1920x1080 is not allowed; an aspect ratio: one of 16:9, 1:1, 21:9, 2:3, 3:2, 4:5, 5:4, 9:16, 9:21",
    );
    let square = Dimensions::AspectRatio(AspectRatio::OneOne);
    check(
        TextToImage::new(Engine::Sdxl10, square, "A fox"),
        "size: 1:1 is not allowed; one of 1024x1024, 1152x896, 1216x832, 1344x768, 1536x640, 640x1536, 768x1344, 832x1216, 896x1152",
    );
    check(new(Engine::Sdxl10, " "), "prompt: 1 characters is not allowed; 1 to 2000 characters");
    check(new(Engine::Sdxl10, &"é".repeat(2001)), "prompt: 2001 characters is not allowed; 1 to 2000 characters");
    check(new(Engine::Ultra, &"é".repeat(10_001)), "prompt: 10001 characters is not allowed; 1 to 10000 characters");
    check(v1().weighted_prompt("x", f64::NAN), "text_prompts.weight: NaN is not allowed; a finite number");
    check(v1().weighted_prompt("", 1.0), "prompt: 0 characters is not allowed; 1 to 2000 characters");
    check(
        v1().negative_prompt("x".repeat(2001)),
        "negative_prompt: 2001 characters is not allowed; 1 to 2000 characters",
    );
    check(v1().cfg_scale(35.5), "cfg_scale: 35.5 is not allowed; a number from 0 to 35");
    check(v1().cfg_scale(f64::NAN), "cfg_scale: NaN is not allowed; a number from 0 to 35");
    check(request(Engine::Sd35Large).cfg_scale(0.5), "cfg_scale: 0.5 is not allowed; a number from 1 to 10");
    check(v1().steps(9), "steps: 9 is not allowed; a whole number from 10 to 50");
    check(v1().samples(11), "samples: 11 is not allowed; a whole number from 1 to 10");
    check(request(Engine::Core).seed(u32::MAX), "seed: 4294967295 is not allowed; a whole number from 0 to 4294967294");
    assert!(v1().seed(u32::MAX).is_ok());
}

#[test]
fn unsupported_option_is_refused_by_name() {
    let check = |result: Result<TextToImage, InvalidRequest>, expected: &str| {
        assert_eq!(result.expect_err(expected).to_string(), expected);
    };
    let ultra = || request(Engine::Ultra);
    check(ultra().weighted_prompt("snow", 0.5), "text_prompts: 0.5 is not allowed; not supported by ultra");
    check(ultra().cfg_scale(8.0), "cfg_scale: 8 is not allowed; not supported by ultra");
    check(ultra().steps(40), "steps: 40 is not allowed; not supported by ultra");
    check(ultra().samples(2), "samples: 2 is not allowed; not supported by ultra");
    check(ultra().sampler(Sampler::KLms), "sampler: K_LMS is not allowed; not supported by ultra");
    check(
        ultra().clip_guidance(ClipGuidance::Slow),
        "clip_guidance_preset: SLOW is not allowed; not supported by ultra",
    );
    check(
        request(Engine::Sd35Flash).output_format(OutputFormat::Webp),
        "output_format: webp is not allowed; one of png, jpeg",
    );
    check(
        request(Engine::Sdxl10).output_format(OutputFormat::Jpeg),
        "output_format: jpeg is not allowed; not supported by stable-diffusion-xl-1024-v1-0",
    );
}

mod schema {
    use proptest::prelude::*;

    use super::*;

    fn validator() -> jsonschema::Validator {
        let schema =
            serde_json::from_str(include_str!("text-to-image-v1.schema.json")).expect("the schema file is JSON");
        jsonschema::validator_for(&schema).expect("the schema is a valid JSON schema")
    }

    #[test]
    fn schema_refuses_invalid_bodies() {
        let validator = validator();
        let good = json_body(&full_request(Engine::Sdxl10).expect("a valid request"));
        assert!(validator.is_valid(&good), "{good}");
        for (field, bad) in [
            ("text_prompts", json!([])),
            ("text_prompts", json!([{"text": ""}])),
            ("text_prompts", json!([{"text": "x".repeat(2001)}])),
            ("width", json!(1920)),
            ("width", json!(256)),
            ("cfg_scale", json!(35.5)),
            ("steps", json!(9)),
            ("samples", json!(11)),
            ("seed", json!(4_294_967_296_u64)),
            ("sampler", json!("EULER")),
            ("clip_guidance_preset", json!("slow")),
            ("style_preset", json!("baroque")),
            ("quality", json!("best")),
        ] {
            let mut body = good.clone();
            body[field] = bad;
            assert!(!validator.is_valid(&body), "{field}: {body}");
        }
    }

    fn one_of<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
        proptest::sample::select(all)
    }

    proptest! {
        #[test]
        fn every_built_request_matches_the_schema(
            (width, height) in (1..5_000_u32, 1..5_000_u32),
            prompt in "\\PC{0,60}",
            extra in proptest::option::of(("\\PC{0,20}", -10.0..10.0_f64)),
            negative in "\\PC{0,20}",
            cfg_scale in proptest::option::of(-5.0..40.0_f64),
            steps in proptest::option::of(0..60_u8),
            samples in proptest::option::of(0..15_u8),
            seed: u32,
            sampler in one_of(Sampler::ALL),
            guidance in one_of(ClipGuidance::ALL),
            preset in one_of(StylePreset::ALL),
        ) {
            let built = || {
                let mut request = TextToImage::new(Engine::Sdxl10, Engine::Sdxl10.dimensions_for(width, height), prompt)?
                    .negative_prompt(negative)?
                    .seed(seed)?
                    .sampler(sampler)?
                    .clip_guidance(guidance)?
                    .style_preset(preset)?;
                if let Some((text, weight)) = extra {
                    request = request.weighted_prompt(text, weight)?;
                }
                if let Some(cfg_scale) = cfg_scale {
                    request = request.cfg_scale(cfg_scale)?;
                }
                if let Some(steps) = steps {
                    request = request.steps(steps)?;
                }
                if let Some(samples) = samples {
                    request = request.samples(samples)?;
                }
                Ok::<_, InvalidRequest>(request)
            };
            if let Ok(request) = built() {
                let body = json_body(&request);
                prop_assert!(validator().is_valid(&body), "{}", body);
            }
        }
    }
}
