//! Decodes, resizes, encodes and verifies images on a bounded pool of blocking threads.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use domain::digest;
use domain::failure::ImageFailureCode;
use domain::image_metadata::ImageMetadata;
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};
use picture::{Buffers, CopyFormat, ProcessedImage, QualityCheck, metadata};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

use crate::telemetry::metrics::ErrorCode;

/// Properties of a stored image file besides its pixels.
#[derive(Debug)]
pub struct FileMetadata {
    /// The embedded metadata: how the image was generated.
    pub metadata: ImageMetadata,
    /// Encoding of the file.
    pub format: ImageFormat,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
}

impl ErrorCode for ImageDefect {
    fn code(&self) -> &'static str {
        ImageFailureCode::InvalidImage.as_str()
    }
}

/// Processes images, at most as many at once as there are processors. Clones share the limit.
#[derive(Clone)]
pub struct ImagePool {
    spec: ImageSpec,
    quality_check: QualityCheck,
    capacity: usize,
    permits: Arc<Semaphore>,
    /// An upscaled image takes 70 MB: one is processed at a time.
    upscaled: Arc<Semaphore>,
    /// Buffers that no thread uses now; at most one for each processor.
    buffers: Arc<Mutex<Vec<Buffers>>>,
}

impl ImagePool {
    /// Creates a pool whose images follow `spec`; images that fail the quality check are rejected.
    pub fn new(spec: ImageSpec, quality_check: QualityCheck) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (permits, upscaled) = (Arc::new(Semaphore::new(processors)), Arc::new(Semaphore::new(1)));
        Self { spec, quality_check, capacity: processors, permits, upscaled, buffers: Arc::default() }
    }

    /// Maximum number of images that are processed at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of images that are being processed.
    pub fn in_flight(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// The specification of the images.
    pub fn spec(&self) -> ImageSpec {
        self.spec
    }

    /// Verifies that a stored file has this SHA-256, follows the specification and passes the quality check.
    ///
    /// # Errors
    ///
    /// The reason why it does not, as text.
    pub async fn verify_stored(&self, file: Bytes, sha256: String) -> Result<(), String> {
        let (spec, quality_check) = (self.spec, self.quality_check);
        self.run_blocking(move || {
            if digest::sha256(&file) != sha256 {
                return Err("the SHA-256 of the file does not match".to_owned());
            }
            picture::verify(&file, &spec)
                .and_then(|()| quality_check.check_file(&file))
                .map_err(|defect| defect.to_string())
        })
        .await
        .unwrap_or_else(|error| Err(format!("the codec failed ({error})")))
    }

    /// Reads the metadata of a stored file.
    ///
    /// `None` if the file is incomplete, does not follow the specification, or was not made by this program.
    pub async fn read_file_metadata(&self, file: Bytes) -> Option<FileMetadata> {
        let spec = self.spec;
        let read = move || {
            picture::verify(&file, &spec).ok()?;
            let metadata::ImageInfo { format, texts, .. } = metadata::read(&file).ok()?;
            Some(FileMetadata { metadata: metadata::from_texts(&texts)?, format, sha256: digest::sha256(&file) })
        };
        self.run_blocking(read).await.ok().flatten()
    }

    /// Makes the image to store from the bytes that the API sent, and embeds the metadata in it.
    ///
    /// # Errors
    ///
    /// As [`picture::process`]; also if the codec panics.
    pub async fn process(&self, bytes: Bytes, metadata: ImageMetadata) -> Result<ProcessedImage, ImageDefect> {
        let (spec, quality_check) = (self.spec, self.quality_check);
        let unused = self.buffers.clone();
        let work = self.run_blocking(move || {
            let lock = || unused.lock().unwrap_or_else(PoisonError::into_inner);
            let mut buffers = lock().pop().unwrap_or_default();
            let processed = picture::process(bytes, &spec, quality_check, &metadata, &mut buffers);
            lock().push(buffers);
            processed
        });
        work.await.unwrap_or_else(|error| Err(codec_panic(&error)))
    }

    /// Makes the image to store from an upscaled image of `expected` width and height. One at a time: the others wait.
    ///
    /// # Errors
    ///
    /// As [`picture::process_upscaled`]; also if the codec panics.
    pub async fn process_upscaled(
        &self,
        bytes: Bytes,
        expected: (u32, u32),
        metadata: ImageMetadata,
    ) -> Result<ProcessedImage, ImageDefect> {
        let spec = self.spec;
        let turn = self.upscaled.clone().acquire_owned().await.expect("the semaphore is never closed");
        let work = self.run_blocking(move || {
            // Held by the thread: it goes on if this future is dropped.
            let _turn = turn;
            picture::process_upscaled(bytes, expected, &spec, &metadata)
        });
        work.await.unwrap_or_else(|error| Err(codec_panic(&error)))
    }

    /// Makes a smaller copy of a stored file, as [`picture::make_copy`].
    ///
    /// # Errors
    ///
    /// [`ImageDefect`] if the file is damaged; also if the codec panics.
    pub async fn make_copy(&self, file: Bytes, width: u32, format: CopyFormat) -> Result<Bytes, ImageDefect> {
        let work = self.run_blocking(move || picture::make_copy(&file, width, format).map(Bytes::from));
        work.await.unwrap_or_else(|error| Err(codec_panic(&error)))
    }

    async fn run_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        // The permit moves into the closure: if this future is dropped, the permit stays taken until the thread ends.
        spawn_blocking(move || {
            let _slot = permit;
            work()
        })
        .await
    }
}

fn codec_panic(error: &JoinError) -> ImageDefect {
    ImageDefect::from_codec_error(&format_args!("the codec failed ({error})"))
}

#[cfg(test)]
mod tests {
    use picture::process;

    use super::*;

    fn embedded_metadata() -> ImageMetadata {
        serde_json::from_value(serde_json::json!({
            "job_id": uuid::Uuid::nil(), "project_id": 1, "index": 1, "description": "A fox", "prompt": "A fox", "seed": 7,
            "software": "test",
        }))
        .expect("valid metadata")
    }

    fn gradient_png(side: u32) -> Bytes {
        let mut file = std::io::Cursor::new(Vec::new());
        let share = |position: u32| u8::try_from(position * 255 / side).expect("the share is at most 255");
        let gradient = image::RgbImage::from_fn(side, side, |x, y| image::Rgb([share(x), share(y), 9]));
        gradient.write_to(&mut file, image::ImageFormat::Png).expect("the image is encoded");
        file.into_inner().into()
    }

    #[tokio::test]
    async fn upscaled_images_are_processed_one_at_a_time() {
        let pool = ImagePool::new(ImageSpec { width: 64, height: 64, ..ImageSpec::default() }, QualityCheck::default());
        let first = pool.upscaled.clone().acquire_owned().await.expect("the semaphore is open");
        let mut second = std::pin::pin!(pool.process_upscaled(gradient_png(256), (256, 256), embedded_metadata()));
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, &mut second).await.is_err(),
            "another one is processed"
        );
        // Images of the API do not wait for an upscaled one.
        pool.process(gradient_png(64), embedded_metadata()).await.expect("the image is processed");
        drop(first);
        second.await.expect("the upscaled image is processed");
    }

    #[tokio::test]
    async fn another_good_file_is_not_the_stored_one() {
        let spec = ImageSpec { width: 64, height: 64, ..ImageSpec::default() };
        let pool = ImagePool::new(spec, QualityCheck::default());
        let embedded = embedded_metadata();
        let finished = process(gradient_png(64), &spec, QualityCheck::default(), &embedded, &mut Buffers::default())
            .expect("the image is processed");
        let good = pool.verify_stored(finished.bytes.clone(), finished.sha256.clone()).await;
        assert_eq!(good, Ok(()));
        let other = pool.verify_stored(finished.bytes.clone(), digest::sha256("another")).await;
        assert_eq!(other, Err("the SHA-256 of the file does not match".to_owned()));
        let metadata = pool.read_file_metadata(finished.bytes).await.expect("the file has metadata");
        assert_eq!((metadata.metadata, metadata.sha256), (embedded, finished.sha256));
        assert!(pool.read_file_metadata(Bytes::from_static(b"half")).await.is_none());
    }
}
