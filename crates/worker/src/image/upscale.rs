//! Replaces a stored image by one that the fast upscaler has enlarged.

use bytes::Bytes;
use picture::ProcessedImage;
use stability_client::{FastUpscale, GenerateError, Generation, OutputFormat, Usage};
use tracing::warn;

use super::error::ImageError;
use super::file::StoredFile;
use super::{ImageGenerator, ImageTask, unusable_image};
use crate::failpoint;
use crate::telemetry::metrics::Stage;

impl ImageGenerator {
    /// Upscales the `original` of a stored image and replaces the file. If that fails, the stored image remains: it was
    /// scaled by the worker, and its parameters say so.
    pub(super) async fn upscale(
        &self,
        task: &ImageTask,
        original: &Bytes,
        stored: StoredFile,
        usage: &mut Usage,
    ) -> Result<StoredFile, ImageError> {
        failpoint::reach("before_upscale").await;
        let ProcessedImage { bytes, format: _, sha256 } =
            match self.request_upscaled(task, original, &stored, usage).await {
                Ok(upscaled) if upscaled.format == stored.format => upscaled,
                // The stored path has the extension of its format.
                Ok(upscaled) => {
                    let reason =
                        format!("the upscaled image is a {}, the stored one a {}", upscaled.format, stored.format);
                    warn!(code = "wrong_format", reason, "image not upscaled; the image scaled by the worker is kept");
                    return Ok(stored);
                }
                Err((code, reason)) => {
                    warn!(code, reason, "image not upscaled; the image scaled by the worker is kept");
                    return Ok(stored);
                }
            };
        let size_bytes = bytes.len() as u64;
        let _unstored = self.unstored.add(size_bytes);
        self.metrics.run_stage(Stage::Store, self.files.overwrite(&stored.file_path, bytes)).await?;
        Ok(StoredFile { size_bytes, sha256, params: task.params.clone(), ..stored })
    }

    /// Requests the upscaled image and scales it down to its final size. A failure has a code and a reason.
    async fn request_upscaled(
        &self,
        task: &ImageTask,
        original: &Bytes,
        stored: &StoredFile,
        usage: &mut Usage,
    ) -> Result<ProcessedImage, (&'static str, String)> {
        let (width, height) = picture::dimensions(original).map_err(|defect| ("invalid_image", defect.to_string()))?;
        let expected = (width * FastUpscale::FACTOR, height * FastUpscale::FACTOR);
        // A JPEG is a tenth as long as a PNG, and scaling down removes its artefacts.
        let request = FastUpscale::new(original.clone())
            .map_err(|error| ("invalid_request", error.to_string()))?
            .output_format(OutputFormat::Jpeg);
        let accept = |upscaled: Generation| async move {
            let used = upscaled.usage;
            let metadata = self.metadata(task, &task.params, stored.seed);
            let processing = self.files.pool.process_upscaled(upscaled.into_first().bytes, expected, metadata);
            let processed = self.metrics.run_stage(Stage::Process, processing).await;
            processed.map(|processed| (processed, used)).map_err(|defect| unusable_image(&defect))
        };
        let budget = self.budget.for_upscale(task.id);
        match self.client.upscale_with(&request, &self.call_options(&budget), accept).await {
            Ok((processed, used)) => {
                *usage = usage.plus(used);
                Ok(processed)
            }
            Err(GenerateError { error, usage: used, .. }) => {
                *usage = usage.plus(used);
                Err((error.kind(), error.to_string()))
            }
        }
    }
}
