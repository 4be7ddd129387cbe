//! `inspect`: what a picture says of itself.

use std::path::PathBuf;

use domain::digest;
use domain::story::Story;
use picture::texts;
use serde::Serialize;

use super::exit::Failure;
use super::screen::Screen;
use super::{jobs, tables};

/// The largest file that is read, in bytes: no stored picture comes near it.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// A PNG or JPEG
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found in a file.
#[derive(Debug, Serialize)]
struct Found {
    file: String,
    format: &'static str,
    width: u32,
    height: u32,
    size_bytes: u64,
    sha256: String,
    /// How it was made; none where it is not from here.
    story: Option<Story>,
    /// Every text in it, by keyword.
    texts: Vec<Text>,
}

#[derive(Debug, Serialize)]
struct Text {
    keyword: String,
    text: String,
}

pub(super) fn inspect(options: &Options, screen: &Screen) -> Result<(), Failure> {
    let found = found(options)?;
    screen.print(&if options.json { jobs::as_json(&found) } else { shown(&found) });
    Ok(())
}

fn found(options: &Options) -> Result<Found, Failure> {
    let file = options.file.display().to_string();
    let unusable = |why: String| Failure::Usage(format!("{file}: {why}"));
    let size_bytes = std::fs::metadata(&options.file).map(|found| found.len());
    let size_bytes = size_bytes.map_err(|error| unusable(format!("cannot be read ({error})")))?;
    if size_bytes > MAX_FILE_BYTES {
        return Err(unusable(format!("{size_bytes} bytes is not allowed; at most {MAX_FILE_BYTES}")));
    }
    let bytes = std::fs::read(&options.file).map_err(|error| unusable(format!("cannot be read ({error})")))?;
    let read = texts::read(&bytes).map_err(|defect| unusable(defect.to_string()))?;
    let texts::Read { format, width, height, texts } = read;
    Ok(Found {
        file,
        format: format.as_str(),
        width,
        height,
        size_bytes,
        sha256: digest::sha256(&bytes),
        story: texts::story(&texts),
        texts: texts.into_iter().map(|(keyword, text)| Text { keyword, text }).collect(),
    })
}

fn shown(found: &Found) -> String {
    let Found { file, format, width, height, size_bytes, sha256, story, texts } = found;
    let mut lines = vec![
        ("file", file.clone()),
        ("picture", format!("{format}, {width}x{height}, {size_bytes} bytes")),
        ("sha256", sha256.clone()),
    ];
    let Some(story) = story else {
        lines.push(("story", "none: it was not made here, or somebody removed it".to_owned()));
        let mut text = tables::lines(&lines);
        for Text { keyword, text: told } in texts {
            // Of whatever origin, and on somebody's terminal.
            let told = told.replace(|c: char| c.is_control() && c != '\n', "\u{FFFD}");
            text += &format!("\n{}:\n{told}\n", keyword.escape_debug());
        }
        return text;
    };
    let recipe = &story.recipe;
    lines.extend([
        ("job", story.job_id.to_string()),
        ("project", story.project_id.to_string()),
        ("image", story.index.to_string()),
        ("description", story.description.clone()),
    ]);
    lines.extend(recipe.english.clone().map(|english| ("in English", english)));
    lines.push(("prompt", recipe.prompt.clone()));
    if !recipe.negative_prompt.is_empty() {
        lines.push(("negative prompt", recipe.negative_prompt.clone()));
    }
    if !recipe.left_out.is_empty() {
        lines.push(("left out", recipe.left_out.join(", ")));
    }
    lines.push(("engine", recipe.engine.clone()));
    lines.push(("seed", story.seed.to_string()));
    lines.extend(recipe.style_preset.clone().map(|preset| ("style preset", preset)));
    lines.extend(recipe.cfg_scale.map(|scale| ("cfg scale", scale.to_string())));
    lines.extend(recipe.steps.map(|steps| ("steps", steps.to_string())));
    lines.push(("software", story.software.clone()));
    tables::lines(&lines)
}
