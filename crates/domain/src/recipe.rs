//! What the API is asked for, for one image: enough to ask again, and to find what was made so before.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::image_spec::ImageSpec;

/// The namespace of fingerprints.
const NAMESPACE: Uuid = Uuid::from_u128(0x2b1d_8a6e_4c07_5f90_8e33_9d5a_71c2_0b64);

/// What the API is asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The description in English, where it had to be translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english: Option<String>,
    /// The composed prompt.
    pub prompt: String,
    /// What the picture shall not show; empty where nothing is excluded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Parts of the prompt that did not fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Parts of the negative prompt that did not fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negative_left_out: Vec<String>,
    /// The engine's name.
    #[serde(default)]
    pub engine: String,
    /// Where the engine takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub style_preset: Option<String>,
    /// Where the engine takes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cfg_scale: Option<f64>,
    /// Where the engine takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u8>,
    /// The seed asked for; 0 let the API choose.
    #[serde(default)]
    pub asked_seed: u32,
}

impl Recipe {
    /// The same for every image that could stand in for this one: same prompts, engine, parameters, seed asked for and finished size.
    pub fn fingerprint(&self, spec: &ImageSpec) -> Uuid {
        let Self {
            english: _,
            prompt,
            negative_prompt,
            left_out: _,
            negative_left_out: _,
            engine,
            style_preset,
            cfg_scale,
            steps,
            asked_seed,
        } = self;
        let asked = (prompt, negative_prompt, engine, style_preset, cfg_scale, steps, asked_seed);
        let said = serde_json::to_vec(&(asked, spec.width, spec.height)).expect("plain data serialises");
        Uuid::new_v5(&NAMESPACE, &said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_differs_with_all_that_makes_a_picture_differ_and_with_nothing_else() {
        let recipe = Recipe {
            prompt: "A fox, 4k".into(),
            negative_prompt: "blurry".into(),
            engine: "core".into(),
            cfg_scale: Some(8.0),
            steps: Some(40),
            ..Recipe::default()
        };
        let spec = ImageSpec::default();
        let first = recipe.fingerprint(&spec);
        let same = [
            Recipe { english: Some("A fox".into()), ..recipe.clone() },
            Recipe { left_out: vec!["warm".into()], ..recipe.clone() },
        ];
        for same in same {
            assert_eq!(same.fingerprint(&spec), first, "{same:?}");
        }
        assert_eq!(recipe.fingerprint(&ImageSpec { max_bytes: 1, ..spec }), first);
        let others = [
            Recipe { prompt: "A fox".into(), ..recipe.clone() },
            Recipe { negative_prompt: String::new(), ..recipe.clone() },
            Recipe { engine: "ultra".into(), ..recipe.clone() },
            Recipe { style_preset: Some("anime".into()), ..recipe.clone() },
            Recipe { cfg_scale: None, ..recipe.clone() },
            Recipe { steps: Some(41), ..recipe.clone() },
            Recipe { asked_seed: 7, ..recipe.clone() },
        ];
        let mut found: Vec<_> = others.iter().map(|other| other.fingerprint(&spec)).collect();
        found.push(recipe.fingerprint(&ImageSpec { width: 1280, ..spec }));
        found.push(recipe.fingerprint(&ImageSpec { height: 720, ..spec }));
        found.push(first);
        let count = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), count);
    }
}
