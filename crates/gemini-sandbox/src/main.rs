//! The sandbox as a program: `gemini-sandbox --listen 127.0.0.1:8091`.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use gemini_sandbox::{Sandbox, Settings};
use tokio::signal::unix::{SignalKind, signal};

/// A stand-in for Gemini as a translator: its rules and its errors, without a key and without a bill
///
/// A text that holds [gemini:FAULT] meets that fault: status=N, blocked, safety, max-tokens, short, swapped, fenced, prose, chinese, slow, suspended, html.
#[derive(Debug, Parser)]
#[command(name = "gemini-sandbox", version)]
struct Options {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8091")]
    listen: SocketAddr,
    /// The key that is accepted
    #[arg(long, value_name = "KEY", default_value = "gm-sandbox")]
    key: String,
    /// A model that it knows
    #[arg(long = "model", value_name = "NAME", default_value = "gemini-flash-latest")]
    models: Vec<String>,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a program says where it is")]
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
