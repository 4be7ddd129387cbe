//! From what the API sends to what is stored: decode under limits, glance at it, scale to cover, crop, encode with its story, check.
//!
//! Plain functions of bytes; which thread they run on is for others to decide. A crate of its own so that development builds optimise it: the codecs'
//! generic code is compiled here.

mod check;
mod decode;
mod encode;
mod fit;
mod glance;
pub mod texts;

use bytes::Bytes;
use domain::digest;
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};
use domain::story::Story;

pub use check::check;
pub use glance::Glance;

/// A picture that keeps to the specification, encoded.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The file.
    pub bytes: Bytes,
    /// How it is encoded.
    pub format: ImageFormat,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
}

/// Makes a stored picture of what the API sent, with its story in it.
///
/// # Errors
///
/// [`ImageDefect`] where it cannot be decoded within the limits, shows nothing, or the result does not keep to the specification.
pub fn finish(sent: &[u8], spec: &ImageSpec, glance: Glance, story: &Story) -> Result<Finished, ImageDefect> {
    let decoded = decode::decode(sent)?;
    glance.at(&decoded)?;
    let fitted = fit::cover(decoded, spec)?;
    let (bytes, format) = encode::encode(&fitted, spec, story)?;
    check(&bytes, spec)?;
    let sha256 = digest::sha256(&bytes);
    Ok(Finished { bytes: bytes.into(), format, sha256 })
}

#[cfg(test)]
mod tests;
