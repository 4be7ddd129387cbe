//! A client for Google's Gemini API that translates texts into English, all in one request.
//!
//! [`Gemini`], created from [`GeminiSettings`], returns a translation or a [`TranslationError`] for each text. It
//! caches nothing.

mod client;
mod error;
mod wire;

pub use client::{Gemini, GeminiSettings};
pub use error::{BuildError, TranslationError};
