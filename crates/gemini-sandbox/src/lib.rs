//! A stand-in for Google's Gemini, as far as a translator needs it: `models.get` and `models.generateContent` of v1beta.
//!
//! It holds to the API's rules (key in the header, known model, fields of the right type), translates from a small dictionary, and goes wrong on
//! request as the real one does: by an order, or by a word in a text. What it does not know it turns into English that says so.
//!
//! In reading order: a [`Sandbox`] listens; the rules of a request stand in `rules`; what it answers in `answer`; what can go wrong in [`Fault`].

mod answer;
mod faults;
mod rules;
mod server;

pub use faults::Fault;
pub use server::{Ledger, Sandbox, Settings};
