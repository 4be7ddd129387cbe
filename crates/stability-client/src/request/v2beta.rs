//! The multipart form of `/v2beta/stable-image/generate/{service}`.

use super::TextToImage;
use crate::dimensions::Dimensions;
use crate::wire::FormValue;

/// Builds the form fields. Source: the public v2beta reference.
pub(super) fn form(request: &TextToImage) -> Vec<(&'static str, FormValue)> {
    let mut form = vec![
        ("prompt", request.prompt().to_owned()),
        ("seed", request.seed.to_string()),
        ("output_format", request.output_format.as_str().to_owned()),
    ];
    if let Dimensions::AspectRatio(ratio) = request.dimensions {
        form.push(("aspect_ratio", ratio.as_str().to_owned()));
    }
    if let Some(text) = &request.negative_prompt {
        form.push(("negative_prompt", text.clone()));
    }
    if let Some(cfg_scale) = request.cfg_scale {
        form.push(("cfg_scale", cfg_scale.to_string()));
    }
    if let Some(preset) = request.style_preset {
        form.push(("style_preset", preset.as_str().to_owned()));
    }
    if let Some(model) = request.engine.model() {
        form.push(("model", model.to_owned()));
    }
    form.into_iter().map(|(name, value)| (name, FormValue::Text(value))).collect()
}
