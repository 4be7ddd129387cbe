//! Log lines: text for people, JSON for machines, always on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::settings::{LogFormat, SettingError, Settings};

/// Starts to log. Without `RUST_LOG` the lines are those of `default_filter`.
///
/// # Errors
///
/// [`SettingError`] where `RUST_LOG` is no filter.
pub fn start<W>(settings: &Settings, default_filter: &str, writer: W) -> Result<(), SettingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let directives = settings.log_filter.as_deref().unwrap_or(default_filter);
    let filter = EnvFilter::try_new(directives)
        .map_err(|error| SettingError::refused("RUST_LOG", directives, format_args!("filter directives ({error})")))?;
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let format = settings.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // Refused only where a subscriber is set already, as in a test; then lines go there.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(terminal).with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    Ok(())
}
