//! A sandbox of Stability AI's image API for tests and demos: no API key, no cost, no network.
//!
//! It enforces the API's rules (keys, dimensions, ranges, English only, the lockout above 150 requests in 10 seconds,
//! error bodies), renders an image that shows its prompt, injects faults on request, and counts requests and charged
//! images, so that a test can check what would have been paid for. The worker's own rules do not belong here.
//!
//! In reading order: the [`server`](Sandbox) checks a request by the `rules` and the `limiter`, applies injected
//! [`faults`], renders the image with `paint`, and records the request in the [`ledger`].

mod api_error;
pub mod faults;
pub mod ledger;
mod limiter;
mod paint;
mod rules;
mod server;
mod settings;

pub use server::Sandbox;
pub use settings::Settings;
