//! The domain types and rules of the worker: commands, prompts, images, job outcomes and events.
//!
//! This crate implements the rules of the contract as pure functions: no IO, no async code, no clock. Facts about
//! Stability's API that it needs (engines, ranges) are passed in as [`rules::Rules`].
//!
//! In reading order: a [`command`] requests images; each description becomes a [`prompt`] and, with a [`seed`], a set
//! of [`generation_params`]; each finished image conforms to the [`image_spec`], carries its [`image_metadata`] and is
//! stored at an [`asset_path`]; each failure has a [`failure`] code; the [`outcome`] of a job follows from the results
//! of its images; an [`event`] publishes it.

pub mod asset_path;
pub mod cancel_request;
pub mod command;
pub mod digest;
pub mod event;
pub mod failure;
pub mod fields;
pub mod generation_params;
pub mod image_metadata;
pub mod image_spec;
pub mod job_over;
pub mod money;
pub mod outcome;
pub mod outgoing;
pub mod prompt;
pub mod retry;
pub mod rules;
pub mod schema;
pub mod seed;
pub mod state;
pub mod strict_json;
pub mod style;
pub mod trace;
pub mod upscaler;
