//! The worker: commands in; finished images, rows and events out.
//!
//! In reading order: [`cli`] reads the [`settings`] and starts a subcommand; [`bootstrap`] opens what jobs need. `run` is the [`worker`]: one
//! session with the [`broker`] after another, in which the [`handler`] handles each message. `generate` calls the [`job`] runner itself, which knows
//! no broker: it claims the job in the [`store`], plans what is missing (with a [`translation`] of its texts), and makes each image: a request to
//! Stability, the [`image_pool`], the [`storage`]. Events go to an [`event_sink`]; [`health`] answers probes; [`telemetry`] exports spans, metrics and
//! logs.

pub mod cli;
pub mod settings;
pub mod worker;

mod delivery_limit;
pub mod event_sink;
pub mod handler;
mod session;

mod budget;
mod cancel;
mod image;
pub mod image_pool;
pub mod job;

pub mod bootstrap;
pub mod phrase_book;
pub mod shared_quota;
pub mod shutdown;
pub mod storage;
pub mod translation;

mod error_chain;
mod failpoint;
pub mod health;
mod retry;
pub mod telemetry;
