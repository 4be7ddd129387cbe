//! `style`: how a project's images look where its commands leave it open.

use clap::{ArgGroup, Subcommand};
use domain::prompt::{DEFAULT_NEGATIVE_PROMPT, DEFAULT_STYLE_MODIFIERS};
use domain::style::{InvalidStyle, Style};
use serde_json::{Map, Value, json};

use super::exit::Failure;
use super::screen::Screen;
use super::{jobs, tables};
use crate::bootstrap;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    #[command(subcommand)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
enum Asked {
    /// Keep a style for the later jobs of a project, in place of what was kept
    ///
    /// A job takes from it what its own command leaves out. A job that has begun keeps the style it began with.
    Set(Set),
    /// Show the style of a project
    Show {
        #[command(flatten)]
        project: Project,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget the style of a project
    Clear {
        #[command(flatten)]
        project: Project,
    },
}

#[derive(Debug, clap::Args)]
struct Project {
    /// Project that the style is for
    #[arg(long = "project", value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    id: i64,
}

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("style").required(true).multiple(true),
    override_usage = "asset-worker style set --project <ID> [OPTIONS]"
)]
struct Set {
    #[command(flatten)]
    project: Project,
    /// A modifier that is appended to every description; may be given more than once. English or Chinese
    #[arg(long = "modifier", value_name = "TEXT", group = "style")]
    modifiers: Vec<String>,
    /// No modifiers at all, not even the default ones
    #[arg(long, group = "style", conflicts_with = "modifiers")]
    no_modifiers: bool,
    /// What the pictures shall not show; an empty text excludes nothing
    #[arg(long, value_name = "TEXT", group = "style")]
    negative_prompt: Option<String>,
    /// A look that the API knows by name, such as cinematic
    #[arg(long, value_name = "NAME", group = "style")]
    style_preset: Option<String>,
    /// How closely the pictures follow the prompt, 0 to 35
    #[arg(long, value_name = "NUMBER", group = "style", value_parser = finite)]
    cfg_scale: Option<f64>,
    /// Diffusion steps, 10 to 50
    #[arg(long, value_name = "COUNT", group = "style")]
    steps: Option<u64>,
}

/// NaN and infinities have no JSON, so that they would count as not given.
fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "a number is expected".to_owned())
}

impl Set {
    /// The style that was described, by the rules of a command.
    fn style(&self) -> Result<Style, Failure> {
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
            Failure::Usage(format!("the style is not valid:\n  {}", violations.join("\n  ")))
        })
    }
}

pub(super) async fn style(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), Failure> {
    if let Asked::Set(set) = &options.asked {
        // What is wrong with the style is said before the database is asked for anything.
        let (style, id) = (set.style()?, set.project.id);
        jobs::store(settings).await?.keep_project_style(id, &style).await?;
        screen.print(&format!("kept for the later jobs of project {id}\n{}", shown(&style)));
        return Ok(());
    }
    let store = jobs::store(settings).await?;
    match &options.asked {
        Asked::Set(_) => {}
        Asked::Show { project: Project { id }, json } => {
            let style = store.project_style(*id).await?;
            match style {
                _ if *json => screen.print(&jobs::as_json(&style.unwrap_or_default())),
                Some(style) => screen.print(&format!("style of project {id}\n{}", shown(&style))),
                None => screen.print(&format!("project {id} keeps no style\n{}", shown(&Style::default()))),
            }
        }
        Asked::Clear { project: Project { id } } => {
            let cleared = store.clear_project_style(*id).await?;
            screen
                .print(&format!("project {id} {}", if cleared { "keeps no style any more" } else { "kept no style" }));
        }
    }
    Ok(())
}

/// A style, with what holds where it leaves something open.
fn shown(style: &Style) -> String {
    let list = |modifiers: &[String]| {
        if modifiers.is_empty() { "none".to_owned() } else { modifiers.join(", ") }
    };
    let open = |default: &str| format!("{default} (default)");
    let none_if_empty = |text: &String| if text.is_empty() { "none".to_owned() } else { text.clone() };
    tables::lines(&[
        ("modifiers", style.style_modifiers.as_deref().map_or_else(|| open(&DEFAULT_STYLE_MODIFIERS.join(", ")), list)),
        (
            "negative prompt",
            style.negative_prompt.as_ref().map_or_else(|| open(DEFAULT_NEGATIVE_PROMPT), none_if_empty),
        ),
        ("style preset", style.style_preset.clone().unwrap_or_else(|| open("none"))),
        ("cfg scale", style.cfg_scale.map_or_else(|| open("IMAGE_CFG_SCALE"), |scale| scale.to_string())),
        ("steps", style.steps.map_or_else(|| open("IMAGE_STEPS"), |steps| steps.to_string())),
    ])
}
