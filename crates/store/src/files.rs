//! The files that images have, for the comparison with the storage.

use domain::state::RowState;
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tracing::Instrument;
use uuid::Uuid;

use super::{QueryExt, Store, StoreError, asset};

/// The most paths of one statement.
const CHUNK: usize = 500;

/// An image with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// The row's id.
    pub id: Uuid,
    /// The id of its job.
    pub job_id: Uuid,
    /// Its index within the job, from 1.
    pub index: i32,
    /// The path relative to the storage root.
    pub path: String,
    /// Whether the image is completed: then the file exists. Otherwise the path is only reserved.
    pub is_completed: bool,
}

impl Store {
    /// Images with a path, at most `limit`, in the order of their ids, after the row `after`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn read_file_rows(&self, after: Option<Uuid>, limit: u64) -> Result<Vec<FileRow>, StoreError> {
        let after = after.map(|id| asset::Column::Id.gt(id));
        self.find_files(Condition::all().add_option(after), Some(limit)).await
    }

    /// The images that have one of these paths.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read.
    pub async fn find_file_rows(&self, paths: &[String]) -> Result<Vec<FileRow>, StoreError> {
        let mut rows = Vec::new();
        for paths in paths.chunks(CHUNK) {
            rows.extend(self.find_files(Condition::all().add(asset::Column::FilePath.is_in(paths)), None).await?);
        }
        Ok(rows)
    }

    async fn find_files(&self, condition: Condition, limit: Option<u64>) -> Result<Vec<FileRow>, StoreError> {
        let columns = [
            asset::Column::Id,
            asset::Column::JobId,
            asset::Column::Index,
            asset::Column::FilePath,
            asset::Column::Status,
        ];
        let rows: Vec<(Uuid, Uuid, i32, String, String)> = asset::Entity::find()
            .select_only()
            .columns(columns)
            .filter(asset::Column::FilePath.is_not_null())
            .filter(condition)
            .order_by_asc(asset::Column::Id)
            .limit(limit)
            .into_tuple()
            .all(&self.db)
            .with_timeout("find the files of images")
            .instrument(self.operation_span("find", "assets"))
            .await?;
        let row = |(id, job_id, index, path, status): (_, _, _, _, String)| {
            let is_completed = status == RowState::Completed.as_str();
            FileRow { id, job_id, index, path, is_completed }
        };
        Ok(rows.into_iter().map(row).collect())
    }
}
