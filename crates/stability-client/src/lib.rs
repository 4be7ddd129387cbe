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
//! let engine = Engine::Sdxl10;
//! let request = TextToImage::new(engine, engine.frame_for(1920, 1080), "A lighthouse at dusk")?.negative_prompt("blurry")?;
//! let picture = client.generate(&request).await?.into_first();
//! println!("{} bytes, seed {}", picture.image.len(), picture.seed);
//! # Ok(())
//! # }
//! ```
//!
//! In reading order: an [`Engine`] takes a [`TextToImage`] request in one of its [`Frame`]s; the [`Client`] sends it within its [`Quota`],
//! and decodes the answer or reduces the failure to one [`Error`], whose [`Fate`] decides about retries, by a [`RetryPolicy`]; an
//! [`Observer`] is told. A caller may set [`Terms`]: what stops it, a [`Budget`], and the [`Party`] that
//! it is of, since parties take turns.

mod account;
mod answer;
mod api_key;
mod client;
mod engine;
mod error;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod options;
mod quota;
mod request;
mod retry;
mod spent;
mod terms;
mod transport;
mod turns;

pub use account::{Balance, EngineListing};
pub use answer::{AnswerForm, MAX_BODY_BYTES, Picture};
pub use api_key::ApiKey;
pub use client::{BuildError, Checked, Client, ClientBuilder, GenerateError, Generated, PROVIDER};
pub use engine::{Engine, Family, UnknownName};
pub use error::{ApiFailure, Error, Fate};
pub use frame::{AspectRatio, Frame, Size};
pub use options::{ClipGuidance, OutputFormat, Sampler, StylePreset};
pub use quota::{GovernorQuota, Quota, QuotaUnavailable};
pub use request::{CFG_SCALE, InvalidRequest, SAMPLES, STEPS, TextToImage};
pub use retry::{Exchange, Finished, Observer, Retry, RetryPolicy};
pub use spent::Spent;
pub use terms::{Budget, BudgetError, Receipt, Terms};
pub use turns::Party;

/// The example of the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
