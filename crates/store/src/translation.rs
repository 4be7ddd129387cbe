//! What was translated before.

use std::collections::HashMap;

use domain::digest;
use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use time::OffsetDateTime;

use tracing::Instrument;

use super::{Doing, Store, StoreError};

/// How many texts are looked up in one statement: a job of 200 descriptions and 51 other texts takes two.
const AT_ONCE: usize = 200;

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

/// A text and its English.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// As it came.
    pub original: String,
    /// In English.
    pub english: String,
}

impl Store {
    /// The English of those texts that were translated before.
    pub async fn translations(&self, texts: &[&str]) -> Result<HashMap<String, String>, StoreError> {
        let looking = async {
            let mut found = HashMap::new();
            for texts in texts.chunks(AT_ONCE) {
                let digests = texts.iter().map(digest::sha256);
                let rows = Entity::find().filter(Column::Digest.is_in(digests)).all(&self.db);
                let rows = rows.doing("look for translations").await?;
                found.extend(rows.into_iter().map(|row| (row.original, row.english)));
            }
            Ok(found)
        };
        looking.instrument(self.asked("find", "translations")).await
    }

    /// Remembers translations; what is known already stays.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then nothing was written.
    pub async fn remember_translations(
        &self,
        translations: &[Translation],
        translator: &str,
    ) -> Result<(), StoreError> {
        if translations.is_empty() {
            return Ok(());
        }
        let now = OffsetDateTime::now_utc();
        let rows = translations.iter().map(|Translation { original, english }| ActiveModel {
            digest: Set(digest::sha256(original)),
            original: Set(original.clone()),
            english: Set(english.clone()),
            translator: Set(translator.to_owned()),
            created_at: Set(now),
        });
        let remember = Entity::insert_many(rows).on_conflict_do_nothing().exec_without_returning(&self.db);
        let remembering = remember.doing("save translations").instrument(self.asked("save", "translations"));
        remembering.await.map(drop)
    }
}
