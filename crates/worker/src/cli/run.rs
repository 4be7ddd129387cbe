//! `run`: starts the worker.

use tracing::info;

use super::exit::CliError;
use crate::settings::Settings;
use crate::shutdown::Signals;
use crate::telemetry::Telemetry;
use crate::worker;

pub(super) async fn run(settings: &Settings, telemetry: &Telemetry) -> Result<(), CliError> {
    let signals = Signals::listen()
        .map_err(|error| CliError::unreachable(format!("signal handlers cannot be installed ({error})")))?;
    info!(version = env!("CARGO_PKG_VERSION"), settings = settings.redacted_text(), "starting");
    Ok(worker::run(settings, telemetry, signals.stop_token()).await?)
}
