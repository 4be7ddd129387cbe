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
//! In reading order: an [`Engine`] takes a [`TextToImage`] request in one of its [`Frame`]s; the [`Client`] sends it within its [`Quota`] and
//! decodes the response, or reduces the failure to one [`Error`], whose [`ErrorClass`] decides about retries, by a [`RetryPolicy`]; an
//! [`Observer`] is told. [`CallOptions`] set what stops a call, the [`Budget`] that pays for it, and the [`Party`] it belongs to: parties take
//! turns.

mod account;
mod answer;
mod api_key;
mod budget;
mod call_options;
mod client;
mod engine;
mod error;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod options;
mod quota;
mod request;
mod retry;
mod turns;
mod usage;
mod wire;

pub use account::{Balance, EngineListing};
pub use answer::Picture;
pub use api_key::ApiKey;
pub use budget::{Budget, BudgetError, Reservation};
pub use call_options::CallOptions;
pub use client::{BuildError, Checked, Client, ClientBuilder, GenerateError, Generated, PROVIDER};
pub use engine::{Engine, Family, UnknownName};
pub use error::{ApiFailure, Error, ErrorClass, InvalidRequest, UnusablePicture};
pub use frame::{AspectRatio, Frame, Size};
pub use options::{AnswerForm, ClipGuidance, OutputFormat, Sampler, StylePreset};
pub use quota::{GovernorQuota, Quota, QuotaUnavailable};
pub use request::{CFG_SCALE, SAMPLES, STEPS, TextToImage};
pub use retry::{Exchange, Finished, Observer, Retry, RetryPolicy};
pub use turns::Party;
pub use usage::Usage;
pub use wire::MAX_BODY_BYTES;

/// The example of the README is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
