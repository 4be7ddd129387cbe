//! One image to make, and the report of its result.

use domain::generation_params::GenerationParams;
use domain::outcome::Asset;
use stability_client::{TextToImage, Usage};
use tracing::Span;
use uuid::Uuid;

use super::error::ImageError;

/// One image to make.
#[derive(Debug, Clone)]
pub(crate) struct ImageTask {
    /// The id of the image's row.
    pub(crate) id: Uuid,
    /// The position of the description in the command, starting at 1.
    pub(crate) index: u32,
    /// The description as in the command, not translated.
    pub(crate) description: String,
    /// The path that an earlier attempt reserved for the file.
    pub(crate) reserved_path: Option<String>,
    pub(crate) params: GenerationParams,
    pub(crate) request: TextToImage,
    /// Equal for cached images that can be used instead of this one.
    pub(crate) fingerprint: Uuid,
}

/// The result of one image in this attempt.
pub(crate) struct ImageReport {
    pub(crate) task: ImageTask,
    /// The image's span, in which the attempt records the result.
    pub(crate) span: Span,
    /// The stored image, or why there is none.
    pub(crate) result: Result<Asset, ImageError>,
    /// The usage of its requests, also if the image failed.
    pub(crate) usage: Usage,
}
