//! The worker: commands in; finished images, rows and events out.
//!
//! In reading order: the [`cli`] reads the [`settings`] and starts what was asked for. `run` is the [`worker`]: it takes commands from
//! the [`broker`], the [`intake`] brings each to its settlement. `generate` goes straight to the [`job`], which knows no broker: it
//! claims the job in the [`store`], has its texts put into English by a [`translation`], asks Stability for what is missing, finishes each picture on the [`finisher`]'s pool, puts it into the [`storage`], and
//! tells an [`event_sink`]. [`parts`] opens what a job needs; [`health`] answers probes; [`telemetry`] is what is seen of it all.

pub mod cli;
pub mod settings;
pub mod worker;

pub mod broker;
pub mod event_sink;
pub mod intake;
pub mod job;

pub mod finisher;
pub mod parts;
pub mod shared_quota;
pub mod storage;
pub mod store;
pub mod translation;

mod causes;
pub mod health;
mod pause;
mod stop;
pub mod telemetry;
