//! From what the API sends to what is stored: decode under limits, glance at it, scale to cover, crop, encode with its story, check.
//!
//! CPU work runs on a bounded pool of blocking threads, never on the async ones.

mod check;
mod decode;
mod encode;
mod fit;
mod glance;
pub mod texts;

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};
use domain::story::Story;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

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

/// Finishes pictures, at most as many at once as there are processors. Clones share the bound.
#[derive(Clone)]
pub struct Finisher {
    spec: ImageSpec,
    glance: Glance,
    slots: Arc<Semaphore>,
}

impl Finisher {
    /// Finishes pictures to this specification, if they pass the glance.
    pub fn new(spec: ImageSpec, glance: Glance) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { spec, glance, slots: Arc::new(Semaphore::new(processors)) }
    }

    /// The specification.
    pub fn spec(&self) -> ImageSpec {
        self.spec
    }

    /// Makes a stored picture of what the API sent, with its story in it.
    ///
    /// # Errors
    ///
    /// [`ImageDefect`] where it cannot be decoded within the limits, shows nothing, or the result does not keep to the specification.
    pub async fn finish(&self, sent: Bytes, story: Story) -> Result<Finished, ImageDefect> {
        let (spec, glance) = (self.spec, self.glance);
        let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        // The slot goes with the work: dropping this future does not let more threads start.
        let work = spawn_blocking(move || {
            let _slot = slot;
            finish(&sent, &spec, glance, &story)
        });
        work.await.unwrap_or_else(|error| Err(ImageDefect::Undecodable(format!("the codec failed ({error})"))))
    }
}

/// The work itself, on whatever thread.
///
/// # Errors
///
/// As [`Finisher::finish`].
pub fn finish(sent: &[u8], spec: &ImageSpec, glance: Glance, story: &Story) -> Result<Finished, ImageDefect> {
    let decoded = decode::decode(sent)?;
    glance.at(&decoded)?;
    let fitted = fit::cover(decoded, spec)?;
    let (bytes, format) = encode::encode(&fitted, spec, story)?;
    check(&bytes, spec)?;
    let sha256 = crate::hex(&Sha256::digest(&bytes));
    Ok(Finished { bytes: bytes.into(), format, sha256 })
}

#[cfg(test)]
mod tests;
