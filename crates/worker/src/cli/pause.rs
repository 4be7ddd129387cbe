//! `pause` and `resume`: an operator closes and opens the account gate.

use serde_json::json;
use store::Store;

use super::database::open_existing_store;
use super::exit::CliError;
use super::screen::Screen;
use crate::settings::Settings;

/// Longest reason, in characters.
const MAX_REASON_CHARS: usize = 200;

#[derive(Debug, clap::Args)]
pub(super) struct PauseOptions {
    /// Why the workers are paused, at most 200 characters; shown by doctor, submit and /readyz
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResumeOptions {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_reason(reason: &str) -> Result<String, String> {
    let (reason, chars) = (reason.trim(), reason.trim().chars().count());
    if chars == 0 || chars > MAX_REASON_CHARS || reason.chars().any(char::is_control) {
        return Err(format!("1 to {MAX_REASON_CHARS} printable characters are allowed, not {chars}"));
    }
    Ok(reason.to_owned())
}

pub(super) async fn pause(options: &PauseOptions, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    open_store(settings).await?.pause(options.reason.as_deref()).await?;
    screen.print(&if options.json {
        json!({"paused": true, "reason": options.reason}).to_string()
    } else {
        "paused: within five seconds no worker takes commands or pays for images; requests in flight finish\n\
         resume with: asset-worker resume"
            .to_owned()
    });
    Ok(())
}

pub(super) async fn resume(options: &ResumeOptions, settings: &Settings, screen: &Screen) -> Result<(), CliError> {
    let was_paused = open_store(settings).await?.resume().await?;
    screen.print(&if options.json {
        json!({"paused": false, "was_paused": was_paused}).to_string()
    } else if was_paused {
        "resumed: the workers take commands again within five seconds".to_owned()
    } else {
        "the workers were not paused".to_owned()
    });
    Ok(())
}

async fn open_store(settings: &Settings) -> Result<Store, CliError> {
    let store = open_existing_store(settings).await?;
    // An older version may not have the gate's table.
    store.migrate().await?;
    Ok(store)
}
