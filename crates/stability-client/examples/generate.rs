//! Generates one image and writes it to a file.
//!
//! ```sh
//! STABILITY_API_KEY=sk-… cargo run -p stability-client --example generate \
//!     "A lighthouse at dusk" lighthouse.png [ENGINE]
//! ```
#![expect(clippy::print_stdout, reason = "the example prints its result")]

use std::error::Error;
use std::path::Path;

use stability_client::{Client, Engine, TextToImage};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [prompt, file, rest @ ..] = arguments.as_slice() else {
        return Err("usage: generate PROMPT FILE [ENGINE]".into());
    };
    let engine: Engine = rest.first().map_or(Ok(Engine::default()), |name| name.parse())?;
    let client = Client::from_env()?;
    println!("{}", generate_to_file(&client, engine, prompt, Path::new(file)).await?);
    Ok(())
}

/// Generates one image with about 16:9 for a prompt and writes it to a file.
pub(crate) async fn generate_to_file(
    client: &Client,
    engine: Engine,
    prompt: &str,
    file: &Path,
) -> Result<String, Box<dyn Error>> {
    let request = TextToImage::new(engine, engine.dimensions_for(1920, 1080), prompt)?.negative_prompt("blurry")?;
    let generated = client.generate(&request).await?;
    let requests = generated.usage.requests;
    let picture = generated.into_first();
    std::fs::write(file, &picture.bytes)?;
    Ok(format!("{}: {} bytes, seed {}, {requests} requests", file.display(), picture.bytes.len(), picture.seed))
}
