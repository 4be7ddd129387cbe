//! What a picture says of itself: how it was made, for whom, by what.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::JobKey;
use crate::recipe::Recipe;

/// What is written into a stored file beside its pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// The job it was made for.
    pub job_id: Uuid,
    /// Its project.
    pub project_id: i64,
    /// The place of its description in the command, from 1.
    pub index: u32,
    /// As the command has it.
    pub description: String,
    /// What the API was asked for.
    #[serde(flatten)]
    pub recipe: Recipe,
    /// As the API chose or took it.
    pub seed: u32,
    /// Name and version of the program.
    pub software: String,
}

impl Story {
    /// Of an image that has its seed.
    pub fn new(key: JobKey, index: u32, description: &str, recipe: &Recipe, seed: u32, software: &str) -> Self {
        Self {
            job_id: key.job_id,
            project_id: key.project_id,
            index,
            description: description.to_owned(),
            recipe: recipe.clone(),
            seed,
            software: software.to_owned(),
        }
    }

    /// A line for `Title`.
    pub fn title(&self) -> String {
        format!("Project {}, image {}", self.project_id, self.index)
    }

    /// The text that image tools look for under `parameters`: prompt, negative prompt, and a line of `Name: value` pairs.
    ///
    /// The form is the one that Stable Diffusion web UIs write and read.
    pub fn parameters(&self) -> String {
        let Recipe { prompt, negative_prompt, engine, style_preset, cfg_scale, steps, .. } = &self.recipe;
        let mut text = one_line(prompt);
        if !negative_prompt.is_empty() {
            text += "\nNegative prompt: ";
            text += &one_line(negative_prompt);
        }
        let mut pairs = Vec::new();
        let mut pair = |name: &str, value: Option<String>| pairs.extend(value.map(|value| format!("{name}: {value}")));
        pair("Steps", steps.map(|steps| steps.to_string()));
        pair("CFG scale", cfg_scale.map(|scale| scale.to_string()));
        pair("Seed", Some(self.seed.to_string()));
        pair("Model", Some(engine.clone()));
        pair("Style preset", style_preset.clone());
        pair("Job", Some(self.job_id.to_string()));
        pair("Project", Some(self.project_id.to_string()));
        pair("Image", Some(self.index.to_string()));
        pair("Version", Some(self.software.clone()));
        text + "\n" + &pairs.join(", ")
    }
}

/// A line break would end the prompt for those who read it.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_are_in_the_form_that_image_tools_read() {
        let recipe = Recipe {
            english: Some("A fox".into()),
            prompt: "A fox,\n4k".into(),
            negative_prompt: "blurry".into(),
            engine: "stable-diffusion-xl-1024-v1-0".into(),
            cfg_scale: Some(8.0),
            steps: Some(40),
            ..Recipe::default()
        };
        let key = JobKey { job_id: Uuid::nil(), project_id: 42 };
        let story = Story::new(key, 3, "狐狸", &recipe, 7, "asset-worker 0.1.0");
        assert_eq!(
            story.parameters(),
            "A fox, 4k\nNegative prompt: blurry\nSteps: 40, CFG scale: 8, Seed: 7, Model: stable-diffusion-xl-1024-v1-0, \
             Job: 00000000-0000-0000-0000-000000000000, Project: 42, Image: 3, Version: asset-worker 0.1.0"
        );
        let bare = Recipe { prompt: "A fox".into(), engine: "core".into(), ..Recipe::default() };
        let story = Story::new(key, 3, "A fox", &bare, 7, "x 1");
        assert!(story.parameters().starts_with("A fox\nSeed: 7, Model: core, Job: "), "{}", story.parameters());
        assert_eq!(story.title(), "Project 42, image 3");
        let read: Story = serde_json::from_value(serde_json::to_value(&story).expect("JSON")).expect("a story");
        assert_eq!(read, story);
    }
}
