//! Generates several images concurrently within the account's quota, and prints retries and failures.
//!
//! `STABILITY_API_KEY=sk-… cargo run -p stability-client --example batch "A fox" "A bear" "An owl"`
#![expect(clippy::print_stdout, reason = "the example prints its result")]

use std::error::Error;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use stability_client::{Client, ClientBuilder, Engine, Observer, Retry, RetryPolicy, TextToImage};
use tokio::task::JoinSet;

/// Prints each retry and each rate-limit pause.
struct PrintObserver;

impl Observer for PrintObserver {
    fn on_retry(&self, retry: &Retry) {
        println!("request {} failed ({}); next request in {:?}", retry.attempt, retry.error_kind, retry.wait);
    }

    fn on_pause(&self, pause: Duration) {
        println!("rate limit exceeded; no requests for {pause:?}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = ClientBuilder::from_env()?
        .max_in_flight(NonZeroUsize::new(3).ok_or("not 0")?)
        .rate_limit(NonZeroU32::new(100).ok_or("not 0")?)
        .retry_policy(RetryPolicy::default().jitter(0.25))
        .observer(Arc::new(PrintObserver))
        .build()?;
    for line in generate_all(&client, std::env::args().skip(1)).await? {
        println!("{line}");
    }
    Ok(())
}

/// Generates one image for each prompt and returns a line for each, in order of completion.
pub(crate) async fn generate_all(
    client: &Client,
    prompts: impl Iterator<Item = String>,
) -> Result<Vec<String>, Box<dyn Error>> {
    let engine = Engine::Sdxl10;
    let mut tasks = JoinSet::new();
    for prompt in prompts {
        let request = TextToImage::new(engine, engine.dimensions_for(1920, 1080), prompt)?;
        let client = client.clone();
        tasks.spawn(async move {
            match client.generate(&request).await {
                Ok(generated) => format!("{}: {} bytes", request.prompt(), generated.into_first().bytes.len()),
                Err(failure) => {
                    format!("{}: {} ({} requests)", request.prompt(), failure.error, failure.usage.requests)
                }
            }
        });
    }
    Ok(tasks.join_all().await)
}
