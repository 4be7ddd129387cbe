//! One image to make, and what became of it.

use domain::outcome::Asset;
use domain::recipe::Recipe;
use stability_client::{TextToImage, Usage};
use tracing::Span;
use uuid::Uuid;

use super::error::ImageError;

/// One image to make.
#[derive(Debug, Clone)]
pub(crate) struct ImageTask {
    /// The id of its row.
    pub(crate) id: Uuid,
    /// The place of its description in the command, from 1.
    pub(crate) index: u32,
    /// As the command has it.
    pub(crate) description: String,
    /// The path that an earlier attempt reserved for its file.
    pub(crate) reserved_path: Option<String>,
    pub(crate) recipe: Recipe,
    pub(crate) request: TextToImage,
    /// Equal for images that can stand in for this one.
    pub(crate) fingerprint: Uuid,
}

/// What became of one image in this attempt.
pub(crate) struct ImageReport {
    pub(crate) task: ImageTask,
    /// The span of the image, for what is still to be recorded.
    pub(crate) span: Span,
    /// A stored file, or why there is none.
    pub(crate) result: Result<Asset, ImageError>,
    /// What its requests used, also where it failed.
    pub(crate) usage: Usage,
}
