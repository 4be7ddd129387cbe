//! Stored translations.

use std::collections::HashMap;

use domain::digest;
use sea_orm::ActiveValue::Set;
use sea_orm::entity::prelude::*;
use sea_orm::sea_query::Expr;
use time::OffsetDateTime;

use tracing::Instrument;

use super::{QueryExt, Store, StoreError};

/// Maximum number of texts in one lookup statement: a job with 200 descriptions and 51 other texts takes two.
const LOOKUP_BATCH: usize = 200;
/// How exactly the last use of a translation is known.
const USE_RESOLUTION: time::Duration = time::Duration::HOUR;

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
    pub(super) used_at: Option<TimeDateTimeWithTimeZone>,
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

/// Why translations are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// A job uses them, which is recorded.
    ForJob,
    /// An estimate reads them.
    ForEstimate,
}

impl Store {
    /// The stored translations of these texts, by original text.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if they cannot be read, or their use cannot be recorded.
    pub async fn find_translations(
        &self,
        texts: &[&str],
        lookup: Lookup,
    ) -> Result<HashMap<String, String>, StoreError> {
        let finding = async {
            let mut found = HashMap::new();
            for texts in texts.chunks(LOOKUP_BATCH) {
                let digests = texts.iter().map(digest::sha256);
                let rows = Entity::find().filter(Column::Digest.is_in(digests)).all(&self.db);
                let rows = rows.with_timeout("find translations").await?;
                if lookup == Lookup::ForJob {
                    self.record_use(&rows).await?;
                }
                found.extend(rows.into_iter().map(|row| (row.original, row.english)));
            }
            Ok(found)
        };
        finding.instrument(self.operation_span("find", "translations")).await
    }

    /// Records that translations are in use. To the hour, so that most jobs write nothing.
    async fn record_use(&self, rows: &[Model]) -> Result<(), StoreError> {
        let now = OffsetDateTime::now_utc();
        let is_outdated = |row: &&Model| row.used_at.is_none_or(|used_at| used_at < now - USE_RESOLUTION);
        let outdated: Vec<&str> = rows.iter().filter(is_outdated).map(|row| row.digest.as_str()).collect();
        if outdated.is_empty() {
            return Ok(());
        }
        Entity::update_many()
            .col_expr(Column::UsedAt, Expr::value(now))
            .filter(Column::Digest.is_in(outdated))
            .exec(&self.db)
            .with_timeout("record the use of translations")
            .await
            .map(drop)
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
            used_at: Set(Some(now)),
        });
        let remember = Entity::insert_many(rows).on_conflict_do_nothing().exec_without_returning(&self.db);
        let remembering =
            remember.with_timeout("save translations").instrument(self.operation_span("save", "translations"));
        remembering.await.map(drop)
    }
}
