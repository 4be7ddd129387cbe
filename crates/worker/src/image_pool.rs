//! Decodes, resizes, encodes and checks pictures on a bounded pool of blocking threads.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use domain::digest;
use domain::failure::ImageFailureCode;
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};
use domain::story::Story;
use picture::{Finished, Glance, texts};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

use crate::telemetry::metrics::Coded;

/// What a stored file holds besides its pixels.
#[derive(Debug)]
pub struct ImageMetadata {
    /// How it was made.
    pub story: Story,
    /// How it is encoded.
    pub format: ImageFormat,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
}

impl Coded for ImageDefect {
    fn code(&self) -> &'static str {
        ImageFailureCode::InvalidImage.as_str()
    }
}

/// Processes pictures, at most as many at once as there are processors. Clones share the bound.
#[derive(Clone)]
pub struct ImagePool {
    spec: ImageSpec,
    glance: Glance,
    all: usize,
    slots: Arc<Semaphore>,
}

impl ImagePool {
    /// Makes pictures of this specification; those that fail the quality check are refused.
    pub fn new(spec: ImageSpec, glance: Glance) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { spec, glance, all: processors, slots: Arc::new(Semaphore::new(processors)) }
    }

    /// Pictures that may be worked on at once.
    pub fn slots(&self) -> usize {
        self.all
    }

    /// Pictures that are being worked on.
    pub fn in_flight(&self) -> usize {
        self.all - self.slots.available_permits()
    }

    /// The specification.
    pub fn spec(&self) -> ImageSpec {
        self.spec
    }

    /// Whether a file that was stored before is still what it was, and good for the present settings.
    ///
    /// # Errors
    ///
    /// Why not, in a sentence.
    pub async fn check_stored(&self, file: Bytes, sha256: String) -> Result<(), String> {
        let (spec, glance) = (self.spec, self.glance);
        self.run(move || {
            if digest::sha256(&file) != sha256 {
                return Err("it is damaged".to_owned());
            }
            picture::check(&file, &spec).and_then(|()| glance.at_file(&file)).map_err(|defect| defect.to_string())
        })
        .await
        .unwrap_or_else(|error| Err(format!("the codec failed ({error})")))
    }

    /// The metadata of a stored file; `None` where it is not whole, not of the present settings, or was not made by this program.
    pub async fn read_metadata(&self, file: Bytes) -> Option<ImageMetadata> {
        let spec = self.spec;
        let read = move || {
            picture::check(&file, &spec).ok()?;
            let texts::Read { format, texts, .. } = texts::read(&file).ok()?;
            Some(ImageMetadata { story: texts::story(&texts)?, format, sha256: digest::sha256(&file) })
        };
        self.run(read).await.ok().flatten()
    }

    /// Makes a stored picture of what the API sent, with its story in it.
    ///
    /// # Errors
    ///
    /// As [`picture::finish`].
    pub async fn process(&self, sent: Bytes, story: Story) -> Result<Finished, ImageDefect> {
        let (spec, glance) = (self.spec, self.glance);
        let work = self.run(move || picture::finish(&sent, &spec, glance, &story));
        work.await.unwrap_or_else(|error| Err(ImageDefect::undecodable(&format_args!("the codec failed ({error})"))))
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
        let slot = self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        // The slot goes with the work: dropping this future does not let more threads start.
        spawn_blocking(move || {
            let _slot = slot;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use picture::finish;

    use super::*;

    #[tokio::test]
    async fn another_good_file_is_not_the_stored_one() {
        let spec = ImageSpec { width: 64, height: 64, ..ImageSpec::default() };
        let pool = ImagePool::new(spec, Glance::default());
        let story: Story = serde_json::from_value(serde_json::json!({
            "job_id": uuid::Uuid::nil(), "project_id": 1, "index": 1, "description": "A fox", "prompt": "A fox", "seed": 7,
            "software": "test",
        }))
        .expect("a story");
        let mut sent = std::io::Cursor::new(Vec::new());
        let gradient = image::RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([u8::try_from(x * 3).unwrap_or(0), u8::try_from(y * 3).unwrap_or(0), 9])
        });
        gradient.write_to(&mut sent, image::ImageFormat::Png).expect("it encodes");
        let finished = finish(sent.get_ref(), &spec, Glance::default(), &story).expect("it is finished");
        let good = pool.check_stored(finished.bytes.clone(), finished.sha256.clone()).await;
        assert_eq!(good, Ok(()));
        let other = pool.check_stored(finished.bytes.clone(), digest::sha256("another")).await;
        assert_eq!(other, Err("it is damaged".to_owned()));
        let metadata = pool.read_metadata(finished.bytes).await.expect("a story");
        assert_eq!((metadata.story, metadata.sha256), (story, finished.sha256));
        assert!(pool.read_metadata(Bytes::from_static(b"half")).await.is_none());
    }
}
