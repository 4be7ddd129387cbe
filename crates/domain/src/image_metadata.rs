//! The metadata embedded in an image file: job, project, generation parameters and software.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::JobKey;
use crate::generation_params::GenerationParams;

/// The metadata written into a stored file, next to its pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageMetadata {
    /// The job that the image was made for.
    pub job_id: Uuid,
    /// The job's project.
    pub project_id: i64,
    /// Position of its description in the command, from 1.
    pub index: u32,
    /// The description in the command.
    pub description: String,
    /// The generation parameters of the request.
    #[serde(flatten)]
    pub params: GenerationParams,
    /// The seed that the API used: the requested one, or its own choice.
    pub seed: u32,
    /// Name and version of the program.
    pub software: String,
}

impl ImageMetadata {
    /// Collects the metadata of an image whose seed is known.
    pub fn new(
        key: JobKey,
        index: u32,
        description: &str,
        params: &GenerationParams,
        seed: u32,
        software: &str,
    ) -> Self {
        Self {
            job_id: key.job_id,
            project_id: key.project_id,
            index,
            description: description.to_owned(),
            params: params.clone(),
            seed,
            software: software.to_owned(),
        }
    }

    /// The text for the keyword `Title`.
    pub fn title(&self) -> String {
        format!("Project {}, image {}", self.project_id, self.index)
    }

    /// The text for the keyword `parameters`: prompt, negative prompt, and a line of `Name: value` pairs.
    ///
    /// Stable Diffusion web UIs write and read this format.
    pub fn parameters_text(&self) -> String {
        let GenerationParams { prompt, negative_prompt, engine, style_preset, cfg_scale, steps, upscaler, .. } =
            &self.params;
        let mut text = collapse_whitespace(prompt);
        if !negative_prompt.is_empty() {
            text += "\nNegative prompt: ";
            text += &collapse_whitespace(negative_prompt);
        }
        let mut pairs = Vec::new();
        let mut push_pair =
            |name: &str, value: Option<String>| pairs.extend(value.map(|value| format!("{name}: {value}")));
        push_pair("Steps", steps.map(|steps| steps.to_string()));
        push_pair("CFG scale", cfg_scale.map(|scale| scale.to_string()));
        push_pair("Seed", Some(self.seed.to_string()));
        push_pair("Model", Some(engine.clone()));
        push_pair("Style preset", style_preset.clone());
        push_pair("Upscaler", (!upscaler.is_default()).then(|| upscaler.as_str().to_owned()));
        push_pair("Job", Some(self.job_id.to_string()));
        push_pair("Project", Some(self.project_id.to_string()));
        push_pair("Image", Some(self.index.to_string()));
        push_pair("Version", Some(self.software.clone()));
        text + "\n" + &pairs.join(", ")
    }
}

/// Replaces line breaks, because programs that read the text end the prompt at a line break.
fn collapse_whitespace(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_text_has_the_format_of_image_tools() {
        let params = GenerationParams {
            english: Some("A fox".into()),
            prompt: "A fox,\n4k".into(),
            negative_prompt: "blurry".into(),
            engine: "stable-diffusion-xl-1024-v1-0".into(),
            cfg_scale: Some(8.0),
            steps: Some(40),
            ..GenerationParams::default()
        };
        let key = JobKey { job_id: Uuid::nil(), project_id: 42 };
        let metadata = ImageMetadata::new(key, 3, "狐狸", &params, 7, "asset-worker 0.1.0");
        assert_eq!(
            metadata.parameters_text(),
            "A fox, 4k\nNegative prompt: blurry\nSteps: 40, CFG scale: 8, Seed: 7, Model: stable-diffusion-xl-1024-v1-0, \
             Job: 00000000-0000-0000-0000-000000000000, Project: 42, Image: 3, Version: asset-worker 0.1.0"
        );
        let bare = GenerationParams { prompt: "A fox".into(), engine: "core".into(), ..GenerationParams::default() };
        let metadata = ImageMetadata::new(key, 3, "A fox", &bare, 7, "x 1");
        assert!(
            metadata.parameters_text().starts_with("A fox\nSeed: 7, Model: core, Job: "),
            "{}",
            metadata.parameters_text()
        );
        assert_eq!(metadata.title(), "Project 42, image 3");
        let read: ImageMetadata =
            serde_json::from_value(serde_json::to_value(&metadata).expect("JSON")).expect("image metadata");
        assert_eq!(read, metadata);
    }
}
