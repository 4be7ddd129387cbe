//! The generation parameters of one image: enough to repeat its request and to find cached images.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::image_spec::ImageSpec;
use crate::upscaler::Upscaler;

/// The namespace of fingerprints.
const NAMESPACE: Uuid = Uuid::from_u128(0x2b1d_8a6e_4c07_5f90_8e33_9d5a_71c2_0b64);

/// The parameters of the request for one image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationParams {
    /// The English translation of the description, if it had to be translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english: Option<String>,
    /// The composed prompt.
    pub prompt: String,
    /// Content that the image must not show; empty if nothing is excluded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Parts of the prompt that were left out because the engine's limit was reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Parts of the negative prompt that were left out because the engine's limit was reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negative_left_out: Vec<String>,
    /// Settings of the project's style that the engine does not take, such as `steps: 30`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub style_left_out: Vec<String>,
    /// The engine's name.
    #[serde(default)]
    pub engine: String,
    /// The style preset, if the engine accepts one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style_preset: Option<String>,
    /// How closely the image follows the prompt, if the engine accepts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f64>,
    /// Diffusion steps, if the engine accepts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u8>,
    /// The seed of the request; 0 lets the API choose.
    #[serde(default, rename = "asked_seed")]
    pub requested_seed: u32,
    /// How the image got its final size.
    #[serde(default, skip_serializing_if = "Upscaler::is_default")]
    pub upscaler: Upscaler,
    /// The upscaler that the job asked for, if the image was made without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_upscaler: Option<Upscaler>,
}

impl GenerationParams {
    /// The cache key: equal for images with the same prompts, engine, parameters, requested seed, upscaler and final
    /// size.
    pub fn fingerprint(&self, spec: &ImageSpec) -> Uuid {
        let Self {
            english: _,
            prompt,
            negative_prompt,
            left_out: _,
            negative_left_out: _,
            style_left_out: _,
            engine,
            style_preset,
            cfg_scale,
            steps,
            requested_seed,
            upscaler,
            requested_upscaler: _,
        } = self;
        let identity = (prompt, negative_prompt, engine, style_preset, cfg_scale, steps, requested_seed);
        let mut bytes =
            serde_json::to_vec(&(identity, spec.width, spec.height)).expect("the parameters are serialisable");
        // The fingerprints of images that were made before there was a choice stay.
        if !upscaler.is_default() {
            bytes.extend(upscaler.as_str().bytes());
        }
        Uuid::new_v5(&NAMESPACE, &bytes)
    }

    /// The parameters of the same image made without the upscaler that was asked for.
    #[must_use]
    pub fn without_upscaler(&self) -> Self {
        let requested_upscaler = (!self.upscaler.is_default()).then_some(self.upscaler);
        Self { upscaler: Upscaler::default(), requested_upscaler, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fingerprint_depends_only_on_params_affecting_the_image() {
        let params = GenerationParams {
            prompt: "A fox, 4k".into(),
            negative_prompt: "blurry".into(),
            engine: "core".into(),
            cfg_scale: Some(8.0),
            steps: Some(40),
            ..GenerationParams::default()
        };
        let spec = ImageSpec::default();
        let first = params.fingerprint(&spec);
        let same = [
            GenerationParams { english: Some("A fox".into()), ..params.clone() },
            GenerationParams { left_out: vec!["warm".into()], ..params.clone() },
            GenerationParams { upscaler: Upscaler::Fast, ..params.clone() }.without_upscaler(),
        ];
        for same in same {
            assert_eq!(same.fingerprint(&spec), first, "{same:?}");
        }
        assert_eq!(params.fingerprint(&ImageSpec { max_bytes: 1, ..spec }), first);
        let others = [
            GenerationParams { prompt: "A fox".into(), ..params.clone() },
            GenerationParams { negative_prompt: String::new(), ..params.clone() },
            GenerationParams { engine: "ultra".into(), ..params.clone() },
            GenerationParams { style_preset: Some("anime".into()), ..params.clone() },
            GenerationParams { cfg_scale: None, ..params.clone() },
            GenerationParams { steps: Some(41), ..params.clone() },
            GenerationParams { requested_seed: 7, ..params.clone() },
            GenerationParams { upscaler: Upscaler::Fast, ..params.clone() },
        ];
        let mut found: Vec<_> = others.iter().map(|other| other.fingerprint(&spec)).collect();
        found.push(params.fingerprint(&ImageSpec { width: 1280, ..spec }));
        found.push(params.fingerprint(&ImageSpec { height: 720, ..spec }));
        found.push(first);
        let count = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), count);
    }

    #[test]
    fn metadata_names_an_upscaler_only_if_one_was_asked_for() {
        let json = |params: &GenerationParams| {
            let json = serde_json::to_value(params).expect("JSON");
            (json["upscaler"].clone(), json["requested_upscaler"].clone())
        };
        let plain = GenerationParams::default();
        assert_eq!(json(&plain), (json!(null), json!(null)));
        assert_eq!(plain.without_upscaler(), plain);
        let fast = GenerationParams { upscaler: Upscaler::Fast, ..plain };
        assert_eq!(json(&fast), (json!("fast"), json!(null)));
        assert_eq!(json(&fast.without_upscaler()), (json!(null), json!("fast")));
    }
}
