//! Celery's message formats, as pure functions: a [`task`](Task) becomes a command; the events of its job become results
//! and the messages of linked tasks, as its [`Reply`] says.
//!
//! Supported is protocol 2, as Celery 5 sends it. Facts about Celery are from its documentation ("Message Protocol",
//! "Workers Guide") and its source, version 5.7.

mod body;
mod envelope;
mod link;
pub mod node;
mod reply;
mod task;

pub use envelope::Envelope;
pub use reply::Reply;
pub use task::{Refused, Task};

#[cfg(test)]
mod tests;
