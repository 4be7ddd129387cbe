//! The program `stability-sandbox`, which runs the sandbox until SIGINT or SIGTERM.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use stability_sandbox::{Sandbox, Settings};

/// Run a sandbox of Stability AI's image API with its rules, limits and errors; images show their prompt
#[derive(Parser)]
#[command(version, about)]
struct Options {
    /// Listen on this address; port 0 chooses a free port, which is logged
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// Accept this API key; can be repeated
    #[arg(long = "key", default_value = "sk-sandbox")]
    keys: Vec<String>,
    /// Allow this many requests in 10 seconds
    #[arg(long, default_value_t = 150)]
    limit: u32,
    /// Reject all requests for this many seconds after the limit was exceeded
    #[arg(long, default_value_t = 60)]
    lockout_s: u64,
    /// Take at least this many milliseconds for a generation
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Render sketches instead of scenes, in a tenth of the time
    #[arg(long)]
    sketch: bool,
    /// Start with this many credits; an image costs 2 (SDXL) to 8 (ultra)
    #[arg(long, default_value_t = 10_000.0)]
    credits: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    let options = Options::parse();
    let settings = Settings {
        listen: options.listen,
        keys: options.keys,
        limit: options.limit,
        lockout: Duration::from_secs(options.lockout_s),
        latency: Duration::from_millis(options.latency_ms),
        sketch: options.sketch,
        credits: options.credits,
        ..Settings::default()
    };
    let sandbox = Sandbox::start(settings).await.with_context(|| format!("cannot listen on {}", options.listen))?;
    tracing::info!(url = sandbox.base_url(), "sandbox listening");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
