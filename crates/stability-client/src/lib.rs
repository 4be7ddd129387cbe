//! A client for Stability AI's text-to-image APIs: v1 (SDXL 1.0) and v2beta (`core`, `ultra`, `sd3.5-*`).
//!
//! The client validates requests before it sends them, keeps the account's quota, limits the requests in flight and
//! retries transient failures. Each failure becomes one [`Error`], whose [`ErrorClass`] tells whether a retry can
//! succeed, whether every other request would fail in the same way, and whether the account may have been charged.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use stability_client::{Client, Engine, TextToImage};
//!
//! let client = Client::from_env()?; // STABILITY_API_KEY
//! let engine = Engine::Core;
//! let dimensions = engine.dimensions_for(1920, 1080);
//! let request = TextToImage::new(engine, dimensions, "A lighthouse at dusk")?.negative_prompt("blurry")?;
//! let image = client.generate(&request).await?.into_first();
//! println!("{} bytes, seed {}", image.bytes.len(), image.seed);
//! # Ok(())
//! # }
//! ```
//!
//! # Overview
//!
//! - [`Engine`] and [`Dimensions`]: what generates the image, and in which size or aspect ratio.
//! - [`TextToImage`]: a request; every option is checked against the API's ranges when it is set.
//! - [`Client`], made by a [`ClientBuilder`]: sends requests within its [`Quota`], retries them by its
//!   [`RetryPolicy`], and returns a [`Generation`] of [`GeneratedImage`]s.
//! - [`CallOptions`]: what cancels a call, the [`Budget`] in which its requests are reserved, and the [`Tenant`] it
//!   belongs to. Tenants of one client are served in turn.
//! - [`Observer`]: is notified of requests, retries and rate-limit pauses, for metrics.

mod account;
mod api_key;
mod budget;
mod call_options;
mod client;
mod credits;
mod dimensions;
mod engine;
mod error;
mod fair_scheduler;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod operation;
mod options;
mod quota;
mod request;
mod response;
mod retry;
mod tls;
mod trace;
mod unknown_name;
mod upscale;
mod usage;
mod wire;

pub use account::{Balance, EngineListing};
pub use api_key::ApiKey;
pub use budget::{Budget, BudgetError, Reservation};
pub use call_options::CallOptions;
pub use client::{AccountStatus, BuildError, Client, ClientBuilder, GEN_AI_PROVIDER_NAME, GenerateError, Generation};
pub use credits::Credits;
pub use dimensions::{Dimensions, Size};
pub use engine::{ApiVersion, CFG_SCALE, Engine, EngineName};
pub use error::{ApiFailure, Error, ErrorClass, InvalidRequest, UnusableImage};
pub use fair_scheduler::Tenant;
pub use operation::Operation;
pub use options::{AspectRatio, ClipGuidance, OutputFormat, ResponseFormat, Sampler, StylePreset};
pub use quota::{GovernorQuota, Quota, QuotaUnavailable};
pub use request::{SAMPLES, STEPS, TextToImage};
pub use response::GeneratedImage;
pub use retry::{CallOutcome, Observer, RequestOutcome, Retry, RetryPolicy};
pub use unknown_name::UnknownName;
pub use upscale::FastUpscale;
pub use usage::Usage;
pub use wire::MAX_BODY_BYTES;

// What the signatures above name.
pub use async_trait::async_trait;
pub use bytes::Bytes;
pub use reqwest;
pub use secrecy::SecretString;
pub use tokio_util::sync::CancellationToken;

/// Compiles the example in the README as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
