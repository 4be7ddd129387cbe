//! A sandbox of Google's Gemini API for translation: `models.get` and `models.generateContent` of v1beta.
//!
//! It enforces the API's rules (key in the header, known model, fields of the right type), translates by a small
//! dictionary, and injects faults as they occur in the real API: by [`Sandbox::inject_fault`], or by a marker in a
//! text. Unknown text is replaced by an English placeholder that says so.
//!
//! In reading order: [`Sandbox`] is the server, `rules` validates requests, `response` builds the response bodies, and
//! [`Fault`] lists the faults.

mod faults;
mod response;
mod rules;
mod server;

pub use faults::Fault;
pub use server::{Ledger, Sandbox, Settings};
