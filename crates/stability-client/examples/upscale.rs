//! Makes an image four times as wide and as high by the fast upscaler, and writes it to a file.
//!
//! ```sh
//! STABILITY_API_KEY=sk-… cargo run -p stability-client --example upscale lighthouse.png large.jpg
//! ```
#![expect(clippy::print_stdout, reason = "the example prints its result")]

use std::error::Error;
use std::path::Path;

use stability_client::{Client, FastUpscale, OutputFormat};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = arguments.as_slice() else {
        return Err("usage: upscale FILE NEW_FILE".into());
    };
    println!("{}", upscale_file(&Client::from_env()?, Path::new(from), Path::new(to)).await?);
    Ok(())
}

/// Upscales an image file. The new file is a PNG if its name ends so, otherwise a JPEG.
pub(crate) async fn upscale_file(client: &Client, from: &Path, to: &Path) -> Result<String, Box<dyn Error>> {
    let is_png = to.extension().is_some_and(|extension| extension == "png");
    let format = if is_png { OutputFormat::Png } else { OutputFormat::Jpeg };
    let request = FastUpscale::new(std::fs::read(from)?)?.output_format(format);
    let upscaled = client.upscale(&request).await?.into_first();
    std::fs::write(to, &upscaled.bytes)?;
    Ok(format!("{}: {} bytes of {format}, {} credits", to.display(), upscaled.bytes.len(), FastUpscale::PRICE))
}
