//! The image API of the demo: the sandbox, or the real API, which costs money.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::print_line;
use crate::process::{Process, command_with_death_signal, log_tail};
use crate::wait::free_addresses;
use crate::{env_var, http_client, programs};

/// Price of one SDXL 1.0 image.
const COST_PER_IMAGE_USD: f64 = 0.02;
/// Price of the fast upscaler.
const COST_PER_UPSCALE_USD: f64 = 0.02;
/// Minimum time for an image in the sandbox, so that the progress can be watched.
const LATENCY_MS: u32 = 1_200;
const SANDBOX_KEY: &str = "sk-sandbox";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The API that the demo's worker uses.
pub(super) enum Api {
    Live { key: String },
    Sandbox { base_url: String },
}

/// The selected API, which is not started yet.
pub(super) struct ApiSelection {
    live_key: Option<String>,
}

impl Api {
    /// Selects the real API if `STABILITY_API_KEY` and `DEMO_LIVE=1` are set, otherwise the sandbox; prints the cost of
    /// this number of images and upscales.
    pub(super) fn from_env(images: usize, upscales: usize) -> ApiSelection {
        let key = env_var("STABILITY_API_KEY");
        let live = env_var("DEMO_LIVE").as_deref() == Some("1");
        let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        let cost_usd = count(images) * COST_PER_IMAGE_USD + count(upscales) * COST_PER_UPSCALE_USD;
        let cost =
            format!("USD {cost_usd:.2} for {images} images and {upscales} upscale, more if requests must be repeated");
        match &key {
            Some(_) if live => print_line(&format!("\nReal images: about {cost}.")),
            Some(_) => print_line(&format!(
                "\nSTABILITY_API_KEY is set. Real images would cost about {cost}.\nTo generate them: DEMO_LIVE=1 make demo. This run uses the sandbox and costs nothing."
            )),
            None if live => {
                print_line("\nDEMO_LIVE=1 needs STABILITY_API_KEY; this run uses the sandbox and costs nothing.");
            }
            None => {}
        }
        ApiSelection { live_key: key.filter(|_| live) }
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Live { .. } => "Stability AI, which costs money",
            Self::Sandbox { .. } => "the sandbox, which draws the images itself and costs nothing",
        }
    }

    /// Environment variables that the worker needs.
    pub(super) fn env_vars(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Live { key } => vec![("STABILITY_API_KEY", key)],
            Self::Sandbox { base_url } => {
                vec![("STABILITY_API_KEY", SANDBOX_KEY), ("STABILITY_BASE_URL", base_url)]
            }
        }
    }
}

impl ApiSelection {
    /// Starts the sandbox unless the real API was selected.
    pub(super) async fn start(self, folder: &Path) -> Result<(Api, Option<Process>)> {
        if let Some(key) = self.live_key {
            return Ok((Api::Live { key }, None));
        }
        let [address] = free_addresses()?;
        let base_url = format!("http://{address}/");
        let log = folder.join("sandbox.log");
        let mut command = command_with_death_signal(&programs::find("stability-sandbox")?, "TERM");
        command.args(["--listen", &address.to_string(), "--key", SANDBOX_KEY]);
        command.args(["--latency-ms", &LATENCY_MS.to_string()]);
        let mut process = Process::start_logged("the sandbox", command, &log)?;
        let http = http_client()?;
        let ledger = format!("{base_url}_sandbox/ledger");
        let up = process.wait_until("the sandbox", START_TIMEOUT, async || http.get(&ledger).send().await.ok());
        up.await.with_context(|| format!("the sandbox did not start; end of its log:\n{}", log_tail(&log)))?;
        Ok((Api::Sandbox { base_url }, Some(process)))
    }
}
