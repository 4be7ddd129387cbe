//! Many pictures at once, within the account's quota, and who is told of what goes wrong.
//!
//! `STABILITY_API_KEY=sk-… cargo run -p stability-client --example batch "A fox" "A bear" "An owl"`
#![expect(clippy::print_stdout, reason = "it speaks to people")]

mod environment;

use std::error::Error;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use stability_client::{Client, Engine, Observer, Retry, RetryPolicy, TextToImage};
use tokio::task::JoinSet;

/// Tells people what is waited for.
struct Aloud;

impl Observer for Aloud {
    fn retrying(&self, retry: &Retry) {
        println!("request {} failed ({}), the next one in {:?}", retry.attempt, retry.cause, retry.wait);
    }

    fn paused(&self, pause: Duration) {
        println!("the account is locked out: nothing is sent for {pause:?}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = environment::client()?
        .max_in_flight(NonZeroUsize::new(3).ok_or("not 0")?)
        .rate_limit(NonZeroU32::new(100).ok_or("not 0")?)
        .retries(RetryPolicy { jitter: 0.25, ..RetryPolicy::default() })
        .observer(Arc::new(Aloud))
        .build()?;
    for line in paint_all(&client, std::env::args().skip(1)).await? {
        println!("{line}");
    }
    Ok(())
}

/// Makes a picture of each prompt, and a line on each.
pub(crate) async fn paint_all(
    client: &Client,
    prompts: impl Iterator<Item = String>,
) -> Result<Vec<String>, Box<dyn Error>> {
    let engine = Engine::Sdxl10;
    let mut pictures = JoinSet::new();
    for prompt in prompts {
        let request = TextToImage::new(engine, engine.frame_for(1920, 1080), prompt)?;
        let client = client.clone();
        pictures.spawn(async move {
            match client.generate(&request).await {
                Ok(generated) => format!("{}: {} bytes", request.prompt(), generated.into_first().image.len()),
                Err(failure) => {
                    format!("{}: {} ({} requests)", request.prompt(), failure.error, failure.usage.requests)
                }
            }
        });
    }
    Ok(pictures.join_all().await)
}
