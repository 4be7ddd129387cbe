//! A client for Google's Gemini as a translator: one request for all texts.
//!
//! A [`Gemini`] made of [`GeminiSettings`] translates texts into English, or says of each why it is [`Untranslated`]. It remembers nothing.

mod client;
mod error;
mod wire;

pub use client::{Gemini, GeminiSettings};
pub use error::{BuildError, Untranslated};
