//! Reports whether the account can generate images; free of charge.
//!
//! `STABILITY_API_KEY=sk-… cargo run -p stability-client --example account [ENGINE]`
#![expect(clippy::print_stdout, reason = "the example prints its result")]

use std::error::Error;

use stability_client::{Client, Engine};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let engine: Engine = std::env::args().nth(1).as_deref().unwrap_or(Engine::default().id()).parse()?;
    let client = Client::from_env()?;
    println!("{}", report(&client, engine).await?);
    Ok(())
}

/// Describes the account in one line.
///
/// # Errors
///
/// If the check fails, or with the same line if the account cannot generate images with `engine`.
pub(crate) async fn report(client: &Client, engine: Engine) -> Result<String, Box<dyn Error>> {
    let status = client.check(engine).await?;
    let listed = match status.engine_listed {
        Some(true) => "is available",
        Some(false) => "is not listed for this account",
        None => "has an API version that lists no engines",
    };
    let report = format!("{:.1} credits left; {engine} {listed}", status.credits);
    if status.is_ready() { Ok(report) } else { Err(format!("not ready: {report}").into()) }
}
