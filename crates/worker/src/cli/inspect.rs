//! `inspect`: prints the metadata embedded in an image file.

use std::path::PathBuf;

use domain::digest;
use domain::image_metadata::ImageMetadata;
use picture::metadata;
use serde::Serialize;

use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::tables;

/// The largest file that is read, in bytes. Stored images are much smaller.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// PNG or JPEG file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Properties and metadata of an image file.
#[derive(Debug, Serialize)]
struct FileReport {
    file: String,
    format: &'static str,
    width: u32,
    height: u32,
    size_bytes: u64,
    sha256: String,
    /// Metadata that the worker embedded: how the image was generated. `None` for files of other programs.
    metadata: Option<ImageMetadata>,
    /// All text entries of the file, by keyword.
    texts: Vec<Text>,
}

#[derive(Debug, Serialize)]
struct Text {
    keyword: String,
    text: String,
}

pub(super) fn run(options: &Options, screen: &Screen) -> Result<(), CliError> {
    let report = read_file_report(options)?;
    screen.print(&if options.json { to_json(&report) } else { format_report(&report) });
    Ok(())
}

fn read_file_report(options: &Options) -> Result<FileReport, CliError> {
    let file = options.file.display().to_string();
    let unusable = |why: String| CliError::Usage(format!("{file}: {why}"));
    let size_bytes = std::fs::metadata(&options.file).map(|report| report.len());
    let size_bytes = size_bytes.map_err(|error| unusable(format!("cannot be read ({error})")))?;
    if size_bytes > MAX_FILE_BYTES {
        return Err(unusable(format!("{size_bytes} bytes is not allowed; at most {MAX_FILE_BYTES}")));
    }
    let bytes = std::fs::read(&options.file).map_err(|error| unusable(format!("cannot be read ({error})")))?;
    let read = metadata::read(&bytes).map_err(|defect| unusable(defect.to_string()))?;
    let metadata::ImageInfo { format, width, height, texts } = read;
    Ok(FileReport {
        file,
        format: format.as_str(),
        width,
        height,
        size_bytes,
        sha256: digest::sha256(&bytes),
        metadata: metadata::from_texts(&texts),
        texts: texts.into_iter().map(|(keyword, text)| Text { keyword, text }).collect(),
    })
}

fn format_report(found: &FileReport) -> String {
    let FileReport { file, format, width, height, size_bytes, sha256, metadata, texts } = found;
    let mut lines = vec![
        ("file", file.clone()),
        ("format", format!("{format}, {width}x{height}, {size_bytes} bytes")),
        ("sha256", sha256.clone()),
    ];
    let Some(metadata) = metadata else {
        lines.push(("metadata", "none: the file was not made by asset-worker, or its metadata was removed".to_owned()));
        let mut text = tables::format_pairs(&lines);
        for Text { keyword, text: raw_text } in texts {
            // The text is of unknown origin: control characters must not reach the terminal.
            let value = raw_text.replace(|c: char| c.is_control() && c != '\n', "\u{FFFD}");
            text += &format!("\n{}:\n{value}\n", keyword.escape_debug());
        }
        return text;
    };
    let params = &metadata.params;
    lines.extend([
        ("job", metadata.job_id.to_string()),
        ("project", metadata.project_id.to_string()),
        ("image", metadata.index.to_string()),
        ("description", metadata.description.clone()),
    ]);
    lines.extend(params.english.clone().map(|english| ("in English", english)));
    lines.push(("prompt", params.prompt.clone()));
    if !params.negative_prompt.is_empty() {
        lines.push(("negative prompt", params.negative_prompt.clone()));
    }
    if !params.left_out.is_empty() {
        lines.push(("left out", params.left_out.join(", ")));
    }
    lines.push(("engine", params.engine.clone()));
    lines.push(("seed", metadata.seed.to_string()));
    lines.extend(params.style_preset.clone().map(|preset| ("style preset", preset)));
    lines.extend(params.cfg_scale.map(|scale| ("cfg scale", scale.to_string())));
    lines.extend(params.steps.map(|steps| ("steps", steps.to_string())));
    lines.push(("software", metadata.software.clone()));
    tables::format_pairs(&lines)
}
