//! The worker: takes commands, generates images, stores files and rows, and publishes events.
//!
//! In reading order:
//!
//! - [`cli`] reads the [`settings`] and starts a subcommand; [`bootstrap`] opens what jobs need.
//! - `run` starts the [`worker`]: one session with the [`broker`] after another, in which the [`handler`] handles each
//!   message.
//! - `generate` calls the [`job`] runner directly. The runner does not depend on a broker: it claims the job in the
//!   [`store`], plans the missing images (with a [`translation`] of their texts), and makes each image with a request
//!   to Stability, the [`image_pool`] and the [`storage`].
//! - Events go to an [`event_sink`]; [`health`] answers probes; [`telemetry`] exports spans, metrics and logs.

mod activity;
mod api;
pub mod cli;
mod serve;
pub mod settings;
mod supervise;
pub mod worker;

mod api_key;
mod delivery_limit;
pub mod event_sink;
mod gate;
pub mod handler;
mod incoming;
mod replies;
mod session;

mod budget;
mod cancel;
mod cancel_queue;
mod celery_node;
mod consumer;
mod cost_policy;
mod estimate;
mod image;
pub mod image_pool;
pub mod job;

pub mod bootstrap;
pub mod outage;
mod pages;
mod phrase_book;
mod presence;
mod purge;
mod retry;
pub mod shared_quota;
pub mod shutdown;
pub mod storage;
mod storage_check;
mod submission;
mod sweep;
pub mod translation;

mod error_chain;
mod failpoint;
pub mod health;
mod http_server;

pub mod telemetry;
