//! `stability-sandbox`: the stand-in as a program.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use stability_sandbox::{Sandbox, Settings};

/// A stand-in for Stability AI's API: its rules, limits and errors, and pictures that show their prompt.
#[derive(Parser)]
#[command(version, about)]
struct Options {
    /// Where to listen; port 0 takes a free one, which is printed
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// A key that is accepted; may be given more than once
    #[arg(long = "key", default_value = "sk-sandbox")]
    keys: Vec<String>,
    /// Requests allowed in 10 seconds
    #[arg(long, default_value_t = 150)]
    limit: u32,
    /// Seconds that a caller over the limit is locked out
    #[arg(long, default_value_t = 60)]
    lockout_s: u64,
    /// Milliseconds that painting takes at least
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Paint sketches, which take a tenth of the time
    #[arg(long)]
    sketch: bool,
    /// Credits of the account; a picture costs 2
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
    tracing::info!(url = sandbox.base_url(), "the sandbox is listening");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
