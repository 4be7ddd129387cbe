//! Pictures are finished on a bounded pool of blocking threads, never on the async ones.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use domain::image_spec::{ImageDefect, ImageSpec};
use domain::story::Story;
use picture::{Finished, Glance};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

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
    /// As [`picture::finish`].
    pub async fn finish(&self, sent: Bytes, story: Story) -> Result<Finished, ImageDefect> {
        let (spec, glance) = (self.spec, self.glance);
        let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        // The slot goes with the work: dropping this future does not let more threads start.
        let work = spawn_blocking(move || {
            let _slot = slot;
            picture::finish(&sent, &spec, glance, &story)
        });
        work.await.unwrap_or_else(|error| Err(ImageDefect::Undecodable(format!("the codec failed ({error})"))))
    }
}
