//! `run`: the worker.

use tracing::info;

use super::exit::Failure;
use crate::settings::Settings;
use crate::stop::Stop;
use crate::telemetry::Telemetry;
use crate::worker;

pub(super) async fn run(settings: &Settings, telemetry: &Telemetry) -> Result<(), Failure> {
    let stop = Stop::on_signal().map_err(|error| Failure::unreachable(format!("no signals ({error})")))?;
    let in_force: Vec<_> = settings.in_force.iter().map(|(name, value)| format!("{name}={value}")).collect();
    info!(version = env!("CARGO_PKG_VERSION"), settings = in_force.join(" "), "starting");
    Ok(worker::run(settings, telemetry, stop.token()).await?)
}
