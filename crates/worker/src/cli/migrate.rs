//! `migrate`: applies pending database migrations.

use serde_json::json;
use store::Store;

use super::exit::CliError;
use super::screen::Screen;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(options: &Options, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let applied = Store::connect(&settings.database_url).await?.migrate().await?;
    screen.print(&match applied {
        applied if options.json => json!({ "applied": applied }).to_string(),
        0 => "the database is up to date".to_owned(),
        applied => format!("{applied} migrations applied"),
    });
    Ok(())
}
