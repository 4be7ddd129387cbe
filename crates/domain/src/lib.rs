//! What a job, a prompt, an image, an outcome and an event are.
//!
//! This crate holds the rules of the contract and nothing else: no IO, no async code and no reads of the clock. What it
//! needs to know about Stability's API (engines, ranges) it is told through [`rules::Rules`].
//!
//! In reading order: a [`command`] asks for images; each description becomes a [`prompt`], and with a [`seed`] a
//! [`recipe`]; each finished image meets the [`image_spec`], carries its [`story`] and gets an [`asset_path`]; what goes wrong has a [`failure`] code; the [`outcome`] of a job follows from its
//! images; an [`event`] tells the world.

pub mod asset_path;
pub mod command;
pub mod digest;
pub mod event;
pub mod failure;
pub mod image_spec;
pub mod money;
pub mod outcome;
pub mod prompt;
pub mod recipe;
pub mod rules;
pub mod seed;
pub mod state;
pub mod story;
pub mod style;
pub mod trace;

mod fields;
mod strict_json;
