//! `serve`: starts the pages and the HTTP API.

use tracing::info;

use super::exit::CliError;
use crate::serve::{self, ServeError};
use crate::settings::Settings;
use crate::shutdown::Signals;
use crate::telemetry::Telemetry;

pub(super) async fn run(settings: &Settings, telemetry: &Telemetry) -> Result<(), CliError> {
    let signals = Signals::listen()
        .map_err(|error| CliError::unreachable(format!("signal handlers cannot be installed ({error})")))?;
    info!(version = env!("CARGO_PKG_VERSION"), settings = settings.redacted_text(), "starting");
    // Boxed to keep this future, and those that contain it, small.
    Ok(Box::pin(serve::serve(settings, telemetry, signals.stop_token())).await?)
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> Self {
        Self::Usage(error.to_string())
    }
}
