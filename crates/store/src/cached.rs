//! Images made before, found by their fingerprint. Their files are the cache.

use domain::image_spec::ImageFormat;
use domain::state::RowState;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use tracing::Instrument;

use super::{Doing, Store, StoreError, asset};

/// How many candidates are looked at: where so many files are missing or damaged, the next one hardly helps.
const CANDIDATES: u64 = 16;

/// An image made before, as its row has it. Whether its file is still there and whole is for others to find out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedImage {
    /// The path below the storage root.
    pub file_path: String,
    /// How it is encoded.
    pub format: ImageFormat,
    /// Length of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file, in lower-case hex.
    pub sha256: String,
    /// The seed it was made with.
    pub seed: u32,
}

impl Store {
    /// Finished images with this fingerprint, the newest first; at most 16.
    pub async fn cached_images(&self, fingerprint: Uuid) -> Result<Vec<CachedImage>, StoreError> {
        async {
            let rows = asset::Entity::find()
                .filter(asset::Column::Fingerprint.eq(fingerprint))
                .filter(asset::Column::Status.eq(RowState::Completed.as_str()))
                .order_by_desc(asset::Column::UpdatedAt)
                .limit(CANDIDATES)
                .all(&self.db)
                .doing("look for a cached image")
                .await?;
            Ok(rows.into_iter().filter_map(cached).collect())
        }
        .instrument(self.asked("find", "assets"))
        .await
    }
}

fn cached(row: asset::Model) -> Option<CachedImage> {
    Some(CachedImage {
        seed: row.metadata().seed?,
        format: ImageFormat::parse(row.format.as_deref()?)?,
        size_bytes: u64::try_from(row.size_bytes?).ok()?,
        sha256: row.sha256?,
        file_path: row.file_path?,
    })
}
