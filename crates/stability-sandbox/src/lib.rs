//! A stand-in for Stability AI's API, for tests and demos: no key, no bill, no network.
//!
//! It holds to the API's rules (keys, sizes, ranges, English only, the lock-out above 150 requests in 10 seconds, error bodies),
//! paints a picture that shows its prompt, injects faults on request, and counts what it was asked, so that a test can say what
//! would have been paid for. It is not a place for the worker's own rules.
//!
//! In reading order: the [`server`](Sandbox) checks a request by the `rules` and the `limiter`, meets the [`faults`] that were
//! asked for, `paint`s, and writes everything into the [`ledger`].

pub mod faults;
pub mod ledger;
mod limiter;
mod paint;
mod reply;
mod rules;
mod server;
mod settings;

pub use server::Sandbox;
pub use settings::Settings;
