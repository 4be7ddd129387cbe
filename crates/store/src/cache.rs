//! Cached images: completed images of earlier jobs, found by their fingerprint.

use domain::image_spec::ImageFormat;
use domain::state::RowState;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use tracing::Instrument;

use super::{QueryExt, Store, StoreError, asset};

/// Maximum number of candidates: if the files of so many are missing or damaged, another one is unlikely to help.
const MAX_CANDIDATES: u64 = 16;

/// A completed image as recorded in its row. The caller checks that the file still exists and is intact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// The path relative to the storage root.
    pub file_path: String,
    /// The file format.
    pub format: ImageFormat,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
    /// The seed with which it was generated.
    pub seed: u32,
}

impl Store {
    /// Completed images with this fingerprint, the newest first, at most 16.
    pub async fn find_cached_images(&self, fingerprint: Uuid) -> Result<Vec<CachedImage>, StoreError> {
        async {
            let rows = asset::Entity::find()
                .filter(asset::Column::Fingerprint.eq(fingerprint))
                .filter(asset::Column::Status.eq(RowState::Completed.as_str()))
                .order_by_desc(asset::Column::UpdatedAt)
                .limit(MAX_CANDIDATES)
                .all(&self.db)
                .with_timeout("find cached images")
                .await?;
            Ok(rows.into_iter().filter_map(cached_image).collect())
        }
        .instrument(self.operation_span("find", "assets"))
        .await
    }
}

fn cached_image(row: asset::Model) -> Option<CachedImage> {
    Some(CachedImage {
        seed: row.parse_metadata().seed?,
        format: ImageFormat::parse(row.format.as_deref()?)?,
        size_bytes: u64::try_from(row.size_bytes?).ok()?,
        sha256: row.sha256?,
        file_path: row.file_path?,
    })
}
