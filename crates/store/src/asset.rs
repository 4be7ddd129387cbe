//! The table `assets`.

use domain::failure::ImageFailureCode;
use domain::generation_params::GenerationParams;
use domain::image_spec::ImageFormat;
use domain::outcome::{Asset, ImageFailure, ImageState, Origin};
use domain::state::RowState;
use sea_orm::QueryOrder;
use sea_orm::entity::prelude::*;
use serde::{Deserialize, Serialize};

pub(super) const IMAGE_TYPE: &str = "image";

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "assets")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) id: Uuid,
    pub(super) project_id: i64,
    pub(super) job_id: Uuid,
    pub(super) index: i32,
    #[sea_orm(column_name = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    #[sea_orm(unique)]
    pub(super) file_path: Option<String>,
    pub(super) metadata: Json,
    pub(super) fingerprint: Option<Uuid>,
    pub(super) original_index: Option<i32>,
    pub(super) seed_index: Option<i32>,
    pub(super) format: Option<String>,
    pub(super) width: Option<i32>,
    pub(super) height: Option<i32>,
    pub(super) size_bytes: Option<i64>,
    pub(super) sha256: Option<String>,
    pub(super) error_code: Option<String>,
    #[sea_orm(column_type = "Text", nullable)]
    pub(super) error_message: Option<String>,
    #[sea_orm(column_name = "may_pass")]
    pub(super) retryable: Option<bool>,
    pub(super) requests: i32,
    pub(super) charged: i32,
    pub(super) cost_micro_usd: i64,
    pub(super) created_at: TimeDateTimeWithTimeZone,
    pub(super) updated_at: TimeDateTimeWithTimeZone,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// The images of a job in the order of their index.
pub(super) async fn read_images(db: &impl ConnectionTrait, job_id: Uuid) -> Result<Vec<Model>, DbErr> {
    Entity::find().filter(Column::JobId.eq(job_id)).order_by_asc(Column::Index).all(db).await
}

/// The JSON in the column `metadata`. Until an image is completed or has failed, only the first two fields are set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Metadata {
    pub(super) description: String,
    pub(super) index: u32,
    #[serde(flatten)]
    pub(super) params: Option<GenerationParams>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) origin: Option<Origin>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uri: Option<String>,
}

impl Metadata {
    pub(super) fn to_json(&self) -> Json {
        serde_json::to_value(self).expect("metadata is serializable")
    }
}

impl Model {
    pub(super) fn image_index(&self) -> u32 {
        u32::try_from(self.index).unwrap_or_default()
    }

    /// The index that its seed follows from.
    pub(super) fn seed_index(&self) -> u32 {
        self.seed_index.and_then(|index| u32::try_from(index).ok()).unwrap_or_else(|| self.image_index())
    }

    pub(super) fn parse_metadata(&self) -> Metadata {
        serde_json::from_value(self.metadata.clone()).unwrap_or_default()
    }

    /// The state of the image. An inconsistent row counts as untried, so that its image is generated again.
    pub(super) fn state(&self) -> ImageState {
        let state = RowState::ALL.iter().find(|state| state.as_str() == self.status);
        match state {
            Some(RowState::Completed) => {
                self.completed_asset().map_or(ImageState::Untried, |asset| ImageState::Completed(Box::new(asset)))
            }
            Some(RowState::Failed) => self.failure().map_or(ImageState::Untried, ImageState::Failed),
            Some(RowState::Pending) | None => ImageState::Untried,
        }
    }

    /// The description in the command.
    pub(super) fn description(&self) -> String {
        self.parse_metadata().description
    }

    fn completed_asset(&self) -> Option<Asset> {
        let metadata = self.parse_metadata();
        Some(Asset {
            id: self.id,
            index: self.image_index(),
            file_path: self.file_path.clone()?,
            uri: metadata.uri?,
            width: u32::try_from(self.width?).ok()?,
            height: u32::try_from(self.height?).ok()?,
            format: ImageFormat::parse(self.format.as_deref()?)?,
            size_bytes: u64::try_from(self.size_bytes?).ok()?,
            sha256: self.sha256.clone()?,
            description: metadata.description,
            params: metadata.params?,
            seed: metadata.seed?,
            origin: metadata.origin?,
        })
    }

    fn failure(&self) -> Option<ImageFailure> {
        let code = self.error_code.as_deref()?.parse::<ImageFailureCode>().ok()?;
        Some(ImageFailure {
            index: self.image_index(),
            description: self.parse_metadata().description,
            code,
            retryable: self.retryable.unwrap_or_else(|| code.is_retryable()),
            message: self.error_message.clone().unwrap_or_default(),
            attempts: u32::try_from(self.requests).unwrap_or_default(),
        })
    }
}
