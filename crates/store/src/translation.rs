//! Stored translations.

use std::collections::HashMap;

use domain::digest;
use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use time::OffsetDateTime;

use tracing::Instrument;

use super::{QueryExt, Store, StoreError};

/// Maximum number of texts in one lookup statement: a job with 200 descriptions and 51 other texts takes two.
const LOOKUP_BATCH: usize = 200;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "translations")]
pub(super) struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub(super) digest: String,
    #[sea_orm(column_type = "Text")]
    pub(super) original: String,
    #[sea_orm(column_type = "Text")]
    pub(super) english: String,
    pub(super) translator: String,
    pub(super) created_at: TimeDateTimeWithTimeZone,
}

#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub(super) enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

/// A text and its English translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The text before translation.
    pub original: String,
    /// The text in English.
    pub translations: String,
}

impl Store {
    /// The stored translations of these texts, by original text.
    pub async fn find_translations(&self, texts: &[&str]) -> Result<HashMap<String, String>, StoreError> {
        let lookup = async {
            let mut found = HashMap::new();
            for texts in texts.chunks(LOOKUP_BATCH) {
                let digests = texts.iter().map(digest::sha256);
                let rows = Entity::find().filter(Column::Digest.is_in(digests)).all(&self.db);
                let rows = rows.with_timeout("find translations").await?;
                found.extend(rows.into_iter().map(|row| (row.original, row.english)));
            }
            Ok(found)
        };
        lookup.instrument(self.operation_span("find", "translations")).await
    }

    /// Saves translations by `translator`; a stored translation of the same text is kept.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was written.
    pub async fn save_translations(&self, translations: &[Translation], translator: &str) -> Result<(), StoreError> {
        if translations.is_empty() {
            return Ok(());
        }
        let now = OffsetDateTime::now_utc();
        let rows = translations.iter().map(|Translation { original, translations: english }| ActiveModel {
            digest: Set(digest::sha256(original)),
            original: Set(original.clone()),
            english: Set(english.clone()),
            translator: Set(translator.to_owned()),
            created_at: Set(now),
        });
        let remember = Entity::insert_many(rows).on_conflict_do_nothing().exec_without_returning(&self.db);
        let remembering =
            remember.with_timeout("save translations").instrument(self.operation_span("save", "translations"));
        remembering.await.map(drop)
    }
}
