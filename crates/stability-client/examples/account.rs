//! Is the account ready to work? Costs nothing.
//!
//! `STABILITY_API_KEY=sk-… cargo run -p stability-client --example account [ENGINE]`
#![expect(clippy::print_stdout, reason = "it speaks to people")]

mod environment;

use std::error::Error;

use stability_client::{Client, Engine};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let engine: Engine = std::env::args().nth(1).as_deref().unwrap_or(Engine::default().id()).parse()?;
    let client = environment::client()?.build()?;
    println!("{}", report(&client, engine).await?);
    Ok(())
}

/// A line on the account; an error where no picture can be asked for.
pub(crate) async fn report(client: &Client, engine: Engine) -> Result<String, Box<dyn Error>> {
    let checked = client.check(engine).await?;
    let listed = match checked.engine_listed {
        Some(true) => "is there",
        Some(false) => "is not listed for this account",
        None => "is of a family that the API does not list",
    };
    let report = format!("{:.1} credits are left; {engine} {listed}", checked.credits);
    if checked.is_ready() { Ok(report) } else { Err(format!("not ready: {report}").into()) }
}
