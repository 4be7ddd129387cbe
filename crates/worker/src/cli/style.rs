//! `style`: sets, shows and clears the style that a project's jobs use for options that their command leaves out.

use clap::ArgGroup;
use domain::prompt::{DEFAULT_NEGATIVE_PROMPT, DEFAULT_STYLE_MODIFIERS};
use domain::style::{InvalidStyle, Style};
use serde_json::Value;

use super::config_args::StyleArgs;
use super::database::open_store;
use super::exit::CliError;
use super::screen::{Screen, to_json};
use super::tables;
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
    group = ArgGroup::new("style").args(StyleArgs::IDS).required(true).multiple(true),
    override_usage = "asset-worker style set --project <ID> [OPTIONS]"
)]
struct SetOptions {
    #[command(flatten)]
    project: ProjectArg,
    #[command(flatten)]
    style: StyleArgs,
}

impl SetOptions {
    /// Builds the style and validates it by the rules of a command.
    fn to_style(&self) -> Result<Style, CliError> {
        let keys = Value::Object(self.style.to_keys());
        Style::parse(keys, &bootstrap::rules()).map_err(|InvalidStyle(violations)| {
            CliError::Usage(format!("invalid style:\n  {}", violations.join("\n  ")))
        })
    }
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    if let Subcommand::Set(set) = &options.subcommand {
        // An invalid style is reported before the database is opened.
        let (style, id) = (set.to_style()?, set.project.id);
        open_store(settings).await?.save_project_style(id, &style).await?;
        screen.print(&format!("style set for later jobs of project {id}\n{}", format_style(&style)));
        return Ok(());
    }
    let store = open_store(settings).await?;
    match &options.subcommand {
        Subcommand::Set(_) => {}
        Subcommand::Show { project: ProjectArg { id }, json } => {
            let style = store.read_project_style(*id).await?;
            match style {
                _ if *json => screen.print(&to_json(&style.unwrap_or_default())),
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
