//! A careful client for Stability AI's text-to-image API.
//!
//! It keeps to the account's quota, bounds its requests in flight, retries what passes, and says of every failure what a caller
//! must know: may it be retried, will every other request meet it too, may it have been charged. It knows nothing of what is
//! done with the images.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use stability_client::{Client, Engine, TextToImage};
//!
//! let client = Client::builder("sk-…").build()?;
//! let size = Engine::Sdxl10.size_for(1920, 1080);
//! let request = TextToImage::new(Engine::Sdxl10, size, "A lighthouse at dusk")?.negative_prompt("blurry")?;
//! let generated = client.generate(&request).await?;
//! println!("{} bytes, seed {}", generated.image.len(), generated.seed);
//! # Ok(())
//! # }
//! ```
//!
//! In reading order: an [`Engine`] takes a [`TextToImage`] request; the [`Client`] sends it within its [`Quota`], and decodes the
//! answer or reduces the failure to one [`Error`], whose [`Fate`] decides about retries.

mod account;
mod answer;
mod api_key;
mod client;
mod engine;
mod error;
mod quota;
mod request;
mod retry;
mod transport;

pub use account::{Balance, EngineListing};
pub use answer::MAX_BODY_BYTES;
pub use api_key::ApiKey;
pub use client::{BuildError, Client, ClientBuilder, GenerateError, Generated, Spent};
pub use engine::{Engine, Size, StylePreset, UnknownName};
pub use error::{ApiFailure, Error, Fate};
pub use quota::{GovernorQuota, Quota, QuotaUnavailable};
pub use request::{CFG_SCALE, InvalidRequest, MAX_PROMPT_CHARS, STEPS, TextToImage};
pub use retry::RetryPolicy;
