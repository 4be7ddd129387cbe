//! Log lines: text for people, JSON for machines, always on standard error.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::settings::{LogFormat, Settings};

/// Libraries whose finest lines repeat what they send, logins among it.
const TALKATIVE: [&str; 5] = ["amq_protocol", "lapin", "sea_orm", "sqlx", "hyper"];
/// Warns of every message that no queue took, with its whole body; we say so ourselves where it matters.
const RETURNED: &str = "lapin::returned_messages";

/// Starts to log. Without `RUST_LOG` the lines are those of `default_filter`.
pub fn start<W>(settings: &Settings, default_filter: &str, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match settings.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => lines.with_ansi(terminal).with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    // The settings have checked the directives.
    let filter = EnvFilter::new(settings.log_filter.as_deref().unwrap_or(default_filter));
    // Refused only where a subscriber is set already, as in a test; then lines go there.
    let _ = tracing_subscriber::registry().with(lines).with(filter).with(filter_fn(is_harmless)).try_init();
}

/// Whether a line cannot hold what must not be logged, whatever `RUST_LOG` asks for.
fn is_harmless(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let fine = *metadata.level() > Level::INFO;
    let told_in_full = fine && TALKATIVE.iter().any(|library| target.starts_with(library));
    !told_in_full && !target.starts_with(RETURNED)
}
