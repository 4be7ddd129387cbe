//! `style`: sets, shows and clears the style that a project's jobs use for options that their command leaves out.

use clap::ArgGroup;
use domain::prompt::{DEFAULT_NEGATIVE_PROMPT, DEFAULT_STYLE_MODIFIERS};
use domain::style::{InvalidStyle, Style};
use serde_json::{Map, Value, json};

use super::exit::CliError;
use super::screen::Screen;
use super::{jobs, tables};
use crate::bootstrap;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Set the style of a project for its later jobs, replacing the previous one
    ///
    /// A job uses the style for the options that its own command leaves out. A job that has started keeps the style
    /// that it started with.
    Set(SetOptions),
    /// Show the style of a project
    Show {
        #[command(flatten)]
        project: ProjectArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove the style of a project
    Clear {
        #[command(flatten)]
        project: ProjectArg,
    },
}

#[derive(Debug, clap::Args)]
struct ProjectArg {
    /// Id of the project
    #[arg(long = "project", value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    id: i64,
}

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("style").required(true).multiple(true),
    override_usage = "asset-worker style set --project <ID> [OPTIONS]"
)]
struct SetOptions {
    #[command(flatten)]
    project: ProjectArg,
    /// Modifier appended to every description, in English or in another script, which is translated; may be given more
    /// than once
    #[arg(long = "modifier", value_name = "TEXT", group = "style")]
    modifiers: Vec<String>,
    /// Append no modifiers, not even the default ones
    #[arg(long, group = "style", conflicts_with = "modifiers")]
    no_modifiers: bool,
    /// What the images must not show; an empty text excludes nothing
    #[arg(long, value_name = "TEXT", group = "style")]
    negative_prompt: Option<String>,
    /// Style preset of the API, for example cinematic
    #[arg(long, value_name = "NAME", group = "style")]
    style_preset: Option<String>,
    /// How closely the images follow the prompt, 0 to 35
    #[arg(long, value_name = "NUMBER", group = "style", value_parser = parse_finite)]
    cfg_scale: Option<f64>,
    /// Number of diffusion steps, 10 to 50
    #[arg(long, value_name = "COUNT", group = "style")]
    steps: Option<u64>,
}

/// Rejects NaN and infinities: JSON cannot represent them, so that they would count as absent.
fn parse_finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "expected a finite number".to_owned())
}

impl SetOptions {
    /// Builds the style and validates it by the rules of a command.
    fn to_style(&self) -> Result<Style, CliError> {
        let mut keys = Map::new();
        if self.no_modifiers || !self.modifiers.is_empty() {
            keys.insert("style_modifiers".to_owned(), json!(self.modifiers));
        }
        let others = [
            ("negative_prompt", self.negative_prompt.as_ref().map(|text| json!(text))),
            ("style_preset", self.style_preset.as_ref().map(|name| json!(name))),
            ("cfg_scale", self.cfg_scale.map(|scale| json!(scale))),
            ("steps", self.steps.map(|steps| json!(steps))),
        ];
        keys.extend(others.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Style::parse(Value::Object(keys), &bootstrap::rules()).map_err(|InvalidStyle(violations)| {
            CliError::Usage(format!("invalid style:\n  {}", violations.join("\n  ")))
        })
    }
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    if let Subcommand::Set(set) = &options.subcommand {
        // An invalid style is reported before the database is opened.
        let (style, id) = (set.to_style()?, set.project.id);
        jobs::open_store(settings).await?.save_project_style(id, &style).await?;
        screen.print(&format!("style set for later jobs of project {id}\n{}", format_style(&style)));
        return Ok(());
    }
    let store = jobs::open_store(settings).await?;
    match &options.subcommand {
        Subcommand::Set(_) => {}
        Subcommand::Show { project: ProjectArg { id }, json } => {
            let style = store.read_project_style(*id).await?;
            match style {
                _ if *json => screen.print(&jobs::to_json(&style.unwrap_or_default())),
                Some(style) => screen.print(&format!("style of project {id}\n{}", format_style(&style))),
                None => screen.print(&format!("project {id} has no style\n{}", format_style(&Style::default()))),
            }
        }
        Subcommand::Clear { project: ProjectArg { id } } => {
            let cleared = store.clear_project_style(*id).await?;
            screen.print(&format!("project {id} {}", if cleared { "no longer has a style" } else { "had no style" }));
        }
    }
    Ok(())
}

/// Formats a style; options that it leaves out are shown with their default.
fn format_style(style: &Style) -> String {
    let list = |modifiers: &[String]| {
        if modifiers.is_empty() { "none".to_owned() } else { modifiers.join(", ") }
    };
    let default_text = |default: &str| format!("{default} (default)");
    let none_if_empty = |text: &String| if text.is_empty() { "none".to_owned() } else { text.clone() };
    tables::format_pairs(&[
        (
            "modifiers",
            style.style_modifiers.as_deref().map_or_else(|| default_text(&DEFAULT_STYLE_MODIFIERS.join(", ")), list),
        ),
        (
            "negative prompt",
            style.negative_prompt.as_ref().map_or_else(|| default_text(DEFAULT_NEGATIVE_PROMPT), none_if_empty),
        ),
        ("style preset", style.style_preset.clone().unwrap_or_else(|| default_text("none"))),
        ("cfg scale", style.cfg_scale.map_or_else(|| default_text("IMAGE_CFG_SCALE"), |scale| scale.to_string())),
        ("steps", style.steps.map_or_else(|| default_text("IMAGE_STEPS"), |steps| steps.to_string())),
    ])
}
