//! The JSON body of `/v1/generation/{engine}/text-to-image`.

use serde_json::{Value, json};

use super::{Prompt, TextToImage};
use crate::dimensions::Dimensions;

/// Builds the JSON body. Source: v1 specification, `TextToImageRequestBody`.
pub(super) fn body(request: &TextToImage) -> Value {
    let to_json = |prompt: &Prompt| json!({"text": prompt.text, "weight": prompt.weight});
    let mut prompts: Vec<Value> = request.prompts.iter().map(to_json).collect();
    if let Some(text) = &request.negative_prompt {
        prompts.push(json!({"text": text, "weight": -1.0}));
    }
    let mut body = json!({"text_prompts": prompts, "samples": request.samples, "seed": request.seed});
    if let Dimensions::Size(size) = request.dimensions {
        body["width"] = size.width.into();
        body["height"] = size.height.into();
    }
    if let Some(cfg_scale) = request.cfg_scale {
        body["cfg_scale"] = cfg_scale.into();
    }
    if let Some(steps) = request.steps {
        body["steps"] = steps.into();
    }
    let names = [
        ("sampler", request.sampler.map(super::Sampler::as_str)),
        ("clip_guidance_preset", request.clip_guidance.map(super::ClipGuidance::as_str)),
        ("style_preset", request.style_preset.map(super::StylePreset::as_str)),
    ];
    for (field, name) in names {
        if let Some(name) = name {
            body[field] = name.into();
        }
    }
    body
}
