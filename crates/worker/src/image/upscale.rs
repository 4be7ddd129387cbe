//! Replaces a stored image by one that the fast upscaler has enlarged.

use bytes::Bytes;
use picture::ProcessedImage;
use stability_client::{
    CallOptions, Error, FastUpscale, GenerateError, Generation, InvalidRequest, OutputFormat, Usage,
};
use tracing::warn;

use super::error::ImageError;
use super::file::StoredFile;
use super::{ImageGenerator, ImageTask, unusable_image};
use crate::error_chain::error_chain;
use crate::failpoint;
use crate::telemetry::metrics::{ErrorCode, Stage};

impl ImageGenerator {
    /// Upscales the `original` of a stored image and replaces the file. If that fails, the stored image remains: it was
    /// scaled by the worker, and its parameters say so.
    ///
    /// Not stopped with the attempt: like a request in flight, it ends within the grace period, or the stored image is
    /// adopted.
    pub(super) async fn upscale(
        &self,
        task: &ImageTask,
        original: &Bytes,
        stored: StoredFile,
        usage: &mut Usage,
    ) -> Result<StoredFile, ImageError> {
        failpoint::reach("before_upscale").await;
        let key = self.gate.key();
        let (code, reason) = match self.request_upscaled(task, original, stored.seed, usage).await {
            Ok(upscaled) if upscaled.format == stored.format => return self.replace(task, stored, upscaled).await,
            // The stored path has the extension of its format.
            Ok(upscaled) => {
                ("other_format", format!("it is a {}, the stored image a {}", upscaled.format, stored.format))
            }
            Err(error) => {
                let (code, reason) = (error.kind(), error.to_string());
                // A refused account closes the gate. This image is stored, so the attempt does not fail because of it.
                if let ImageError::Store(error) = self.close_gate_if_refused(&key, ImageError::from(error)).await {
                    warn!(error = error_chain(&error), "refusal of the account not recorded");
                }
                (code, reason)
            }
        };
        warn!(code, reason, "image not upscaled; the image scaled by the worker is kept");
        Ok(stored)
    }

    /// Requests the upscaled image and scales it down to its final size.
    async fn request_upscaled(
        &self,
        task: &ImageTask,
        original: &Bytes,
        seed: u32,
        usage: &mut Usage,
    ) -> Result<ProcessedImage, Error> {
        let (width, height) = picture::dimensions(original)
            .map_err(|defect| InvalidRequest::new("image", format!("{} bytes", original.len()), defect.to_string()))?;
        let expected = (width * FastUpscale::FACTOR, height * FastUpscale::FACTOR);
        // A JPEG is a tenth as long as a PNG, and scaling down removes its artefacts.
        let request = FastUpscale::new(original.clone())?.output_format(OutputFormat::Jpeg);
        let accept = |upscaled: Generation| async move {
            let used = upscaled.usage;
            let metadata = self.metadata(task, &task.params, seed);
            let processing = self.files.pool.process_upscaled(upscaled.into_first().bytes, expected, metadata);
            let processed = self.metrics.run_stage(Stage::Process, processing).await;
            processed.map(|processed| (processed, used)).map_err(|defect| unusable_image(&defect))
        };
        let budget = self.budget.for_upscale(task.id);
        let options = CallOptions::default().budget(&budget).tenant(self.tenant);
        let (result, used) = match self.client.upscale_with(&request, &options, accept).await {
            Ok((processed, used)) => (Ok(processed), used),
            Err(GenerateError { error, usage: used, .. }) => (Err(error), used),
        };
        *usage = usage.plus(used);
        result
    }

    /// Replaces the stored file. If that fails, the file that is there counts, as long as it is one of the two.
    async fn replace(
        &self,
        task: &ImageTask,
        stored: StoredFile,
        upscaled: ProcessedImage,
    ) -> Result<StoredFile, ImageError> {
        let ProcessedImage { bytes, format: _, sha256 } = upscaled;
        let size_bytes = bytes.len() as u64;
        let replacement = StoredFile { size_bytes, sha256, params: task.params.clone(), ..stored.clone() };
        let unstored = self.unstored.add(size_bytes);
        let written = self.metrics.run_stage(Stage::Store, self.files.overwrite(&stored.file_path, bytes)).await;
        drop(unstored);
        let error = match written {
            Ok(()) => return Ok(replacement),
            Err(error @ ImageError::Store(_)) => return Err(error),
            Err(error) => error,
        };
        for file in [replacement, stored] {
            let read = self.files.storage.read(&file.file_path, file.size_bytes..=file.size_bytes).await?;
            if let Some(bytes) = read
                && self.files.pool.verify_stored(bytes, file.sha256.clone()).await.is_ok()
            {
                let (code, reason) = (error.code(), error_chain(&error));
                warn!(code, reason, "upscaled image not stored; the file that is stored is kept");
                return Ok(file);
            }
        }
        Err(error)
    }
}
