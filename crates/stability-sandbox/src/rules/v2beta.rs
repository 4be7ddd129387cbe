//! Validates requests to the v2beta services `core`, `ultra` and `sd3`.
//!
//! Source: the public v2beta reference; the order of the checks is the sandbox's own.

use super::{Format, ImageRequest, STYLE_PRESETS, check_language, is_flagged_by_moderation};
use crate::api_error::ApiError;

/// The models of the service `sd3` with the price of one image in credits; the first is the default.
const MODELS: [(&str, f64); 4] =
    [("sd3.5-large", 6.5), ("sd3.5-large-turbo", 4.0), ("sd3.5-medium", 3.5), ("sd3.5-flash", 2.5)];
const ASPECT_RATIOS: [(&str, u32, u32); 9] = [
    ("16:9", 1344, 768),
    ("1:1", 1024, 1024),
    ("21:9", 1536, 640),
    ("2:3", 832, 1216),
    ("3:2", 1216, 832),
    ("4:5", 896, 1088),
    ("5:4", 1088, 896),
    ("9:16", 768, 1344),
    ("9:21", 640, 1536),
];
const MAX_PROMPT_CHARS: usize = 10_000;

/// Validates the form fields of a request to a service.
pub(crate) fn parse(service: &str, fields: &[(String, String)]) -> Result<ImageRequest, ApiError> {
    let bad_request = |message: String| ApiError::new(400, "bad_request", message);
    let mut known_fields = vec!["prompt", "negative_prompt", "aspect_ratio", "seed", "output_format", "style_preset"];
    let formats: &[&str] = match service {
        "core" | "ultra" => &["png", "jpeg", "webp"],
        "sd3" => {
            known_fields.extend(["model", "cfg_scale"]);
            &["png", "jpeg"]
        }
        _ => return Err(ApiError::new(404, "not_found", "no such service")),
    };
    if let Some((unknown, _)) = fields.iter().find(|(name, _)| !known_fields.contains(&name.as_str())) {
        return Err(bad_request(format!("{unknown}: unknown field")));
    }
    let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let one_of = |name: &str, allowed: &[&str]| match field(name) {
        Some(value) if !allowed.contains(&value) => {
            Err(bad_request(format!("{name}: must be one of {}", allowed.join(", "))))
        }
        other => Ok(other),
    };
    let prompt = field("prompt").ok_or_else(|| bad_request("prompt: is required".to_owned()))?;
    for (name, text) in [("prompt", Some(prompt)), ("negative_prompt", field("negative_prompt"))] {
        let Some(text) = text else { continue };
        let min = usize::from(name == "prompt");
        if !(min..=MAX_PROMPT_CHARS).contains(&text.chars().count()) {
            return Err(bad_request(format!("{name}: must be {min} to {MAX_PROMPT_CHARS} characters")));
        }
        check_language(text)?;
    }
    let ratios = ASPECT_RATIOS.map(|(name, _, _)| name);
    let ratio = one_of("aspect_ratio", &ratios)?.unwrap_or("1:1");
    let format = match one_of("output_format", formats)? {
        Some("jpeg") => Format::Jpeg,
        Some("webp") => Format::Webp,
        _ => Format::Png,
    };
    one_of("style_preset", &STYLE_PRESETS)?;
    let model = one_of("model", &MODELS.map(|(name, _)| name))?.unwrap_or(MODELS[0].0);
    let credits = match service {
        "core" => 3.0,
        "ultra" => 8.0,
        _ => MODELS.into_iter().find(|(name, _)| *name == model).map_or(MODELS[0].1, |(_, credits)| credits),
    };
    if let Some(text) = field("cfg_scale") {
        let valid = text.parse().is_ok_and(|number: f64| (1.0..=10.0).contains(&number));
        if !valid {
            return Err(bad_request("cfg_scale: must be a number from 1 to 10".to_owned()));
        }
    }
    let seed = match field("seed") {
        None => 0,
        Some(text) => text
            .parse()
            .ok()
            .filter(|seed| *seed < u32::MAX)
            .ok_or_else(|| bad_request("seed: must be a whole number from 0 to 4294967294".to_owned()))?,
    };
    if is_flagged_by_moderation(prompt) {
        return Err(ApiError::new(
            403,
            "content_moderation",
            "Your request was flagged by our content moderation system",
        ));
    }
    let (_, width, height) =
        ASPECT_RATIOS.into_iter().find(|(name, _, _)| *name == ratio).expect("the ratio was validated above");
    // Core generates 1.5 megapixels, the other services 1 megapixel.
    let (width, height) = if service == "core" { (width * 5 / 4, height * 5 / 4) } else { (width, height) };
    Ok(ImageRequest { prompt: prompt.to_owned(), width, height, samples: 1, seed, format, credits })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form_fields(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn valid_form_is_parsed() {
        let fields = [
            ("prompt", "A fox"),
            ("negative_prompt", "nude"),
            ("aspect_ratio", "16:9"),
            ("seed", "7"),
            ("output_format", "jpeg"),
            ("style_preset", "anime"),
        ];
        let request = parse("core", &form_fields(&fields)).expect("a valid request");
        assert_eq!((request.width, request.height, request.seed, request.format), (1680, 960, 7, Format::Jpeg));
        let plain = parse("ultra", &form_fields(&[("prompt", "A fox")])).expect("a valid request");
        assert_eq!((plain.width, plain.height, plain.seed, plain.format), (1024, 1024, 0, Format::Png));
        assert!(parse("sd3", &form_fields(&[("prompt", "A fox"), ("model", "sd3.5-flash")])).is_ok());
    }

    #[test]
    fn each_violation_returns_the_api_error_name() {
        let check = |service: &str, name: &str, value: &str, expected: &str| {
            let mut fields = form_fields(&[("prompt", "A fox")]);
            fields.retain(|(known, _)| known != name);
            fields.push((name.to_owned(), value.to_owned()));
            let error = parse(service, &fields).expect_err(expected);
            assert_eq!(format!("{} {}", error.status, error.name), expected, "{name}: {value}");
        };
        check("gone", "seed", "1", "404 not_found");
        check("core", "prompt", "", "400 bad_request");
        check("core", "prompt", &"x".repeat(10_001), "400 bad_request");
        check("core", "prompt", "一座寧靜的山景", "400 invalid_language");
        check("core", "prompt", "a Gory battle", "403 content_moderation");
        check("core", "aspect_ratio", "4:3", "400 bad_request");
        check("core", "seed", "4294967295", "400 bad_request");
        check("core", "seed", "-1", "400 bad_request");
        check("core", "output_format", "gif", "400 bad_request");
        check("core", "style_preset", "baroque", "400 bad_request");
        check("ultra", "style_preset", "baroque", "400 bad_request");
        check("ultra", "cfg_scale", "5", "400 bad_request");
        check("sd3", "cfg_scale", "0.5", "400 bad_request");
        check("sd3", "cfg_scale", "high", "400 bad_request");
        check("sd3", "output_format", "webp", "400 bad_request");
        check("ultra", "steps", "40", "400 bad_request");
        check("sd3", "model", "sd3", "400 bad_request");
        assert!(parse("core", &[]).is_err());
    }
}
