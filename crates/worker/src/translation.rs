//! English for texts that are not: SDXL understands nothing else.
//!
//! A phrase book comes first, since its translations are fixed; then what the database remembers; then Gemini, in one request for all that is
//! left, which the database remembers from then on. What nobody translates is never sent to Stability.

use std::collections::{HashMap, HashSet};

use domain::prompt::needs_translation;
use gemini_client::{Gemini, Untranslated};
use store::{Store, StoreError, Translation};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::phrase_book::PhraseBook;
use crate::settings::{SettingError, TranslationSettings};

/// Texts and their English.
#[derive(Debug, Default)]
pub struct English(HashMap<String, Result<String, Untranslated>>);

impl English {
    /// The English of a text; the text itself where it needs no translation.
    ///
    /// # Errors
    ///
    /// [`Untranslated`] where there is none.
    pub fn of(&self, text: &str) -> Result<String, Untranslated> {
        if !needs_translation(text) {
            return Ok(text.to_owned());
        }
        let unasked = || Err(Untranslated::Refused("nobody was asked to translate it".to_owned()));
        self.0.get(text).cloned().unwrap_or_else(unasked)
    }
}

/// Puts texts into English. Clones share everything.
#[derive(Clone)]
pub struct Translator {
    phrase_book: PhraseBook,
    store: Store,
    gemini: Option<Gemini>,
}

impl Translator {
    /// Brings the parts together; nothing is sent.
    ///
    /// # Errors
    ///
    /// [`SettingError`] where Gemini's key cannot stand in a header.
    pub fn new(settings: &TranslationSettings, store: Store) -> Result<Self, SettingError> {
        let gemini = settings.gemini.as_ref().map(Gemini::new).transpose();
        let gemini = gemini.map_err(|error| SettingError::unusable("GEMINI_API_KEY", &error))?;
        Ok(Self { phrase_book: settings.phrase_book.clone(), store, gemini })
    }

    /// The English of those texts that need translation. A `stop` ends the wait for Gemini; what it had not translated is unreachable.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the database fails.
    pub async fn english<'a>(
        &self,
        texts: impl IntoIterator<Item = &'a str>,
        stop: &CancellationToken,
    ) -> Result<English, StoreError> {
        let mut english = English::default();
        let mut seen = HashSet::new();
        let mut left: Vec<&str> =
            texts.into_iter().filter(|text| needs_translation(text) && seen.insert(*text)).collect();
        left.retain(|text| match self.phrase_book.english(text) {
            None => true,
            Some(found) => {
                english.0.insert((*text).to_owned(), Ok(found));
                false
            }
        });
        if left.is_empty() {
            return Ok(english);
        }
        for (text, found) in self.store.translations(&left).await? {
            english.0.insert(text, Ok(found));
        }
        left.retain(|text| !english.0.contains_key(*text));
        let translated = self.translated(&left, stop).await?;
        english.0.extend(left.into_iter().map(str::to_owned).zip(translated));
        Ok(english)
    }

    /// What Gemini makes of the rest, remembered for later.
    async fn translated(
        &self,
        texts: &[&str],
        stop: &CancellationToken,
    ) -> Result<Vec<Result<String, Untranslated>>, StoreError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let Some(gemini) = &self.gemini else {
            let nobody = "it is not English, not in the phrase book, and GEMINI_API_KEY is not set";
            return Ok(vec![Err(Untranslated::Refused(nobody.to_owned())); texts.len()]);
        };
        let mut translated = gemini.translate(texts, stop).await;
        let good: Vec<_> = texts
            .iter()
            .zip(&translated)
            .filter_map(|(text, result)| {
                let english = result.as_ref().ok()?.clone();
                Some(Translation { original: (*text).to_owned(), english })
            })
            .collect();
        self.store.remember_translations(&good, gemini.model()).await?;
        // Where another job was first, its translation holds, so that every try of every job reads the same.
        let kept = self.store.translations(texts).await?;
        for (text, result) in texts.iter().zip(&mut translated) {
            if let Some(english) = kept.get(*text) {
                *result = Ok(english.clone());
            }
        }
        if good.len() == texts.len() {
            info!(texts = texts.len(), translator = gemini.model(), "texts were translated");
        } else {
            let cause = translated.iter().find_map(|result| result.as_ref().err()).map(ToString::to_string);
            let failed = texts.len() - good.len();
            warn!(texts = texts.len(), failed, cause, translator = gemini.model(), "some texts were not translated");
        }
        Ok(translated)
    }
}
