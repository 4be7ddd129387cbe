//! The program `gemini-sandbox`, which runs the sandbox until SIGINT or SIGTERM.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use gemini_sandbox::{Sandbox, Settings};
use tokio::signal::unix::{SignalKind, signal};

/// Run a sandbox of the Gemini API for translation, with its rules and errors
///
/// A text that contains [gemini:FAULT] triggers that fault: status=N, blocked, safety, max-tokens, short, swapped,
/// fenced, prose, chinese, slow, suspended, html.
#[derive(Debug, Parser)]
#[command(name = "gemini-sandbox", version)]
struct Options {
    /// Listen on this address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8091")]
    listen: SocketAddr,
    /// Accept this API key
    #[arg(long, value_name = "KEY", default_value = "gm-sandbox")]
    key: String,
    /// Serve this model; can be repeated
    #[arg(long = "model", value_name = "NAME", default_value = "gemini-flash-latest")]
    models: Vec<String>,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the program prints its address")]
async fn main() -> anyhow::Result<()> {
    let Options { listen, key, models } = Options::parse();
    let sandbox = Sandbox::start(Settings { listen, key, models }).await;
    let sandbox = sandbox.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", sandbox.base_url());
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
