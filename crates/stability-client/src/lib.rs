//! A client for Stability AI's image APIs: text-to-image of v1 (SDXL 1.0) and v2beta (`core`, `ultra`, `sd3.5-*`), and
//! the fast upscaler.
//!
//! The client checks requests before it sends them, keeps the account's quota, limits the requests in flight and
//! retries transient failures.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use stability_client::{Client, Engine, FastUpscale, TextToImage};
//!
//! let client = Client::from_env()?; // STABILITY_API_KEY
//! let engine = Engine::Ultra;
//! let size = engine.dimensions_for(1920, 1080);
//! let request = TextToImage::new(engine, size, "A lighthouse at dusk")?.negative_prompt("blurry")?;
//! let image = client.generate(&request).await?.into_first();
//! println!("{} bytes, seed {}", image.bytes.len(), image.seed);
//!
//! let large = client.upscale(&FastUpscale::new(image.bytes)?).await?.into_first();
//! std::fs::write("lighthouse.png", &large.bytes)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Overview
//!
//! - [`Engine`], [`Dimensions`] and [`Credits`]: what generates the image, in which size, for which price.
//! - [`TextToImage`] and [`FastUpscale`]: requests. Every option is checked when it is set.
//! - [`Client`], made by [`Client::from_env`] or a [`ClientBuilder`]: sends requests within its [`Quota`], retries them
//!   by its [`RetryPolicy`], and returns a [`Generation`] of [`GeneratedImage`]s.
//! - [`CallOptions`]: what cancels a call, the [`Budget`] in which its requests are reserved, and the [`Tenant`] it
//!   belongs to. Tenants of one client are served in turn.
//! - [`Observer`]: is notified of requests, retries and rate-limit pauses, for metrics.
//! - [`Client::check`], [`Client::balance`] and [`Client::engines`]: the account, free of charge.
//!
//! # Errors
//!
//! A call fails with a [`GenerateError`]: the last [`Error`], and the [`Usage`] of all its requests. What a caller
//! needs to decide is in [`Error::class`]:
//!
//! | [`ErrorClass`] | errors | what to do |
//! | --- | --- | --- |
//! | `retryable` | [`Connect`](Error::Connect), [`Timeout`](Error::Timeout), [`Interrupted`](Error::Interrupted), [`RateLimited`](Error::RateLimited), [`Server`](Error::Server), [`Unfinished`](Error::Unfinished), [`Undecodable`](Error::Undecodable), [`Damaged`](Error::Damaged) | the client has retried it; try again later |
//! | | [`Unusable`](Error::Unusable) | `accept` refused the image; try another seed or prompt |
//! | | [`Quota`](Error::Quota), [`BudgetError::Unavailable`] | not sent and not retried; try again later |
//! | `fatal` | [`Unauthorized`](Error::Unauthorized), [`InsufficientCredits`](Error::InsufficientCredits), [`UnknownEngine`](Error::UnknownEngine), [`BudgetError::Exceeded`] | stop: every other request would fail alike |
//! | neither | [`ContentPolicy`](Error::ContentPolicy), [`Filtered`](Error::Filtered), [`Rejected`](Error::Rejected), [`InvalidRequest`](Error::InvalidRequest), [`TooLong`](Error::TooLong) | change this request |
//! | | [`Stopped`](Error::Stopped) | the caller stopped the call |
//!
//! `possibly_charged` is set where the API may have made an image: for timeouts, also at a gateway, for interrupted
//! connections, and for 200 responses without a usable image.
//!
//! ```
//! use stability_client::{Error, GenerateError};
//!
//! fn advise(failure: &GenerateError) -> &'static str {
//!     match &failure.error {
//!         Error::ContentPolicy(_) | Error::Filtered => "describe the image in other words",
//!         Error::InsufficientCredits(_) => "buy credits",
//!         Error::Stopped => "run it again",
//!         error if error.class().fatal => "check the API key and the engine",
//!         error if error.class().retryable => "try again later",
//!         _ => "correct the request",
//!     }
//! }
//! ```
//!
//! # Features
//!
//! - `rustls` (default): TLS by rustls with ring and the system's root certificates. A crypto provider that the process
//!   has installed is used; none is installed.
//! - `native-tls`: TLS by the system's library instead, if `rustls` is off.
//! - `tracing` (default): a span for each call and each request, by OpenTelemetry's semantic conventions, and a log
//!   line for each retry. Prompts appear only with [`ClientBuilder::log_refused_prompts`].

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
pub use client::{AccountStatus, BuildError, Client, ClientBuilder, GenerateError, Generation};
pub use credits::Credits;
pub use dimensions::{Dimensions, Size};
pub use engine::{ApiVersion, CFG_SCALE, Engine, EngineName};
pub use error::{ApiFailure, Error, ErrorClass, InvalidRequest, UnusableImage};
pub use fair_scheduler::Tenant;
pub use operation::{GEN_AI_PROVIDER_NAME, Operation};
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
pub use tokio::time::Instant;
pub use tokio_util::sync::CancellationToken;

/// Compiles the example in the README as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
