//! Validates v1 text-to-image requests.
//!
//! Source: the v1 specification; the order of the checks is the sandbox's own.

use serde_json::{Map, Value};

use super::{Format, ImageRequest, STYLE_PRESETS, check_language, is_flagged_by_moderation};
use crate::api_error::ApiError;

pub(crate) const SDXL: &str = "stable-diffusion-xl-1024-v1-0";
/// Price of one image: the upper bound for all steps and sizes.
const CREDITS: f64 = 2.0;

const SDXL_DIMENSIONS: [(u64, u64); 9] = [
    (1024, 1024),
    (1152, 896),
    (1216, 832),
    (1344, 768),
    (1536, 640),
    (640, 1536),
    (768, 1344),
    (832, 1216),
    (896, 1152),
];

const SAMPLERS: [&str; 10] = [
    "DDIM",
    "DDPM",
    "K_DPMPP_2M",
    "K_DPMPP_2S_ANCESTRAL",
    "K_DPM_2",
    "K_DPM_2_ANCESTRAL",
    "K_EULER",
    "K_EULER_ANCESTRAL",
    "K_HEUN",
    "K_LMS",
];

const CLIP_GUIDANCE_PRESETS: [&str; 7] = ["FAST_BLUE", "FAST_GREEN", "NONE", "SIMPLE", "SLOW", "SLOWER", "SLOWEST"];

const KNOWN_FIELDS: [&str; 11] = [
    "text_prompts",
    "width",
    "height",
    "cfg_scale",
    "steps",
    "samples",
    "seed",
    "sampler",
    "clip_guidance_preset",
    "style_preset",
    "extras",
];

/// Validates the body of a request to an engine.
pub(crate) fn parse(engine: &str, body: &[u8]) -> Result<ImageRequest, ApiError> {
    if engine != SDXL {
        return Err(ApiError::from_status(404));
    }
    let bad_request = |message: String| ApiError::new(400, "bad_request", message);
    let value: Value = serde_json::from_slice(body).map_err(|error| bad_request(format!("invalid JSON: {error}")))?;
    let object = value.as_object().ok_or_else(|| bad_request("the body must be a JSON object".to_owned()))?;
    if let Some(unknown) = object.keys().find(|key| !KNOWN_FIELDS.contains(&key.as_str())) {
        return Err(bad_request(format!("{unknown}: unknown field")));
    }
    let samples = parse_integer(object, "samples", 1, 1, 10, "invalid_samples")?;
    parse_integer(object, "steps", 30, 10, 50, "bad_request")?;
    let seed = parse_integer(object, "seed", 0, 0, u64::from(u32::MAX), "bad_request")?;
    check_number(object, "cfg_scale", 0.0, 35.0)?;
    check_one_of(object, "style_preset", &STYLE_PRESETS)?;
    check_one_of(object, "sampler", &SAMPLERS)?;
    check_one_of(object, "clip_guidance_preset", &CLIP_GUIDANCE_PRESETS)?;
    if object.get("extras").is_some_and(|extras| !extras.is_object()) {
        return Err(bad_request("extras: must be a JSON object".to_owned()));
    }
    let (width, height) = parse_dimensions(object)?;
    let prompt = parse_prompts(object)?;
    Ok(ImageRequest {
        prompt,
        width: to_u32(width),
        height: to_u32(height),
        samples: to_u32(samples),
        seed: to_u32(seed),
        format: Format::Png,
        credits: CREDITS,
    })
}

fn to_u32(value: u64) -> u32 {
    u32::try_from(value).expect("the validated ranges fit a u32")
}

fn parse_integer(
    object: &Map<String, Value>,
    key: &str,
    default: u64,
    min: u64,
    max: u64,
    name: &'static str,
) -> Result<u64, ApiError> {
    match object.get(key) {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| ApiError::new(400, name, format!("{key}: must be a whole number between {min} and {max}"))),
    }
}

fn check_number(object: &Map<String, Value>, key: &str, min: f64, max: f64) -> Result<(), ApiError> {
    let valid = object.get(key).is_none_or(|value| value.as_f64().is_some_and(|number| (min..=max).contains(&number)));
    if valid {
        Ok(())
    } else {
        Err(ApiError::new(400, "bad_request", format!("{key}: must be between {min} and {max}")))
    }
}

fn check_one_of(object: &Map<String, Value>, key: &str, names: &[&str]) -> Result<(), ApiError> {
    let valid = object.get(key).is_none_or(|value| value.as_str().is_some_and(|name| names.contains(&name)));
    if valid {
        Ok(())
    } else {
        Err(ApiError::new(400, "bad_request", format!("{key}: must be one of {}", names.join(", "))))
    }
}

fn parse_dimensions(object: &Map<String, Value>) -> Result<(u64, u64), ApiError> {
    let side = |key: &str| match object.get(key) {
        None => Ok(1024),
        Some(value) => value.as_u64().ok_or_else(|| {
            ApiError::new(400, "invalid_height_or_width", format!("{key}: must be a whole number of pixels"))
        }),
    };
    let (width, height) = (side("width")?, side("height")?);
    if !SDXL_DIMENSIONS.contains(&(width, height)) {
        let sizes: Vec<_> = SDXL_DIMENSIONS.iter().map(|(w, h)| format!("{w}x{h}")).collect();
        return Err(ApiError::new(
            400,
            "invalid_sdxl_v1_dimensions",
            format!("for {SDXL} the allowed dimensions are {}, but we received {width}x{height}", sizes.join(", ")),
        ));
    }
    Ok((width, height))
}

/// Joins the prompts of positive weight after checking length, language and moderation.
fn parse_prompts(object: &Map<String, Value>) -> Result<String, ApiError> {
    let bad_request = |message: &str| ApiError::new(400, "bad_request", message);
    let prompts = object
        .get("text_prompts")
        .and_then(Value::as_array)
        .filter(|prompts| !prompts.is_empty())
        .ok_or_else(|| bad_request("text_prompts: at least one prompt is required"))?;
    let mut positive = Vec::new();
    for prompt in prompts {
        let text =
            prompt.get("text").and_then(Value::as_str).ok_or_else(|| bad_request("text_prompts.text: is required"))?;
        if text.is_empty() || text.chars().count() > 2_000 {
            return Err(bad_request("text_prompts.text: must be 1 to 2000 characters"));
        }
        let weight = match prompt.get("weight") {
            None | Some(Value::Null) => 1.0,
            Some(weight) => weight.as_f64().ok_or_else(|| bad_request("text_prompts.weight: must be a number"))?,
        };
        check_language(text)?;
        if weight > 0.0 {
            positive.push(text);
        }
    }
    let joined = positive.join(" ");
    if is_flagged_by_moderation(&joined) {
        return Err(ApiError::new(
            400,
            "invalid_prompts",
            "Invalid prompts detected: your prompt was flagged by moderation",
        ));
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body() -> Value {
        json!({
            "text_prompts": [{"text": "A fox", "weight": 1.0}, {"text": "nude, blurry", "weight": -1.0}],
            "width": 1344, "height": 768, "cfg_scale": 8.0, "steps": 40, "samples": 1, "seed": 7,
        })
    }

    #[test]
    fn valid_request_is_parsed() {
        let request = parse(SDXL, body().to_string().as_bytes());
        assert_eq!(
            request,
            Ok(ImageRequest {
                prompt: "A fox".into(),
                width: 1344,
                height: 768,
                samples: 1,
                seed: 7,
                format: Format::Png,
                credits: 2.0,
            })
        );
    }

    #[test]
    fn omitted_fields_get_the_api_defaults() {
        let request = parse(SDXL, br#"{"text_prompts": [{"text": "A fox"}], "sampler": "K_EULER"}"#);
        assert_eq!(
            request,
            Ok(ImageRequest {
                prompt: "A fox".into(),
                width: 1024,
                height: 1024,
                samples: 1,
                seed: 0,
                format: Format::Png,
                credits: 2.0,
            })
        );
    }

    #[test]
    fn each_violation_returns_the_api_error_name() {
        let check = |engine: &str, key: &str, value: Value, expected: &str| {
            let mut body = body();
            body[key] = value.clone();
            let error = parse(engine, body.to_string().as_bytes()).expect_err(expected);
            assert_eq!(format!("{} {}", error.status, error.name), expected, "{key}: {value}");
        };
        check("gone", "steps", json!(40), "404 not_found");
        check(SDXL, "width", json!(1920), "400 invalid_sdxl_v1_dimensions");
        check(SDXL, "width", json!("wide"), "400 invalid_height_or_width");
        check("stable-diffusion-v1-6", "steps", json!(40), "404 not_found");
        check(SDXL, "samples", json!(11), "400 invalid_samples");
        check(SDXL, "steps", json!(51), "400 bad_request");
        check(SDXL, "cfg_scale", json!(36), "400 bad_request");
        check(SDXL, "seed", json!(4_294_967_296_u64), "400 bad_request");
        check(SDXL, "style_preset", json!("baroque"), "400 bad_request");
        check(SDXL, "sampler", json!("EULER"), "400 bad_request");
        check(SDXL, "clip_guidance_preset", json!("fast"), "400 bad_request");
        check(SDXL, "extras", json!(7), "400 bad_request");
        check(SDXL, "quality", json!("best"), "400 bad_request");
        check(SDXL, "text_prompts", json!([]), "400 bad_request");
        check(SDXL, "text_prompts", json!([{"text": "x".repeat(2001)}]), "400 bad_request");
        check(SDXL, "text_prompts", json!([{"text": "一座寧靜的山景"}]), "400 invalid_language");
        check(SDXL, "text_prompts", json!([{"text": "a Gory battle"}]), "400 invalid_prompts");
    }
}
