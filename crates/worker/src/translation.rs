//! Translates texts into English, the only language that SDXL understands.
//!
//! Sources, in this order: the phrase book, whose translations are fixed; translations stored in the database; Gemini,
//! in one call for all remaining texts, whose translations are then stored in the database. A text without a
//! translation is never sent to Stability.

use std::collections::{HashMap, HashSet};

use domain::prompt::needs_translation;
use gemini_client::TranslationError;
use store::{Lookup, Store, StoreError, Translation};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api_key::GeminiAccess;
use crate::phrase_book::PhraseBook;
use crate::settings::{SettingError, TranslationSettings};

/// Translations by original text, or the error of each text that has none.
#[derive(Debug, Default)]
pub struct Translations(HashMap<String, Result<String, TranslationError>>);

impl Translations {
    /// Number of texts that have a translation.
    pub(crate) fn len(&self) -> usize {
        self.0.values().filter(|translation| translation.is_ok()).count()
    }

    /// Sets the same English text for texts whose translation is not known yet.
    pub(crate) fn set_placeholders(&mut self, texts: &[&str]) {
        self.0.extend(texts.iter().map(|text| ((*text).to_owned(), Ok("a translation".to_owned()))));
    }

    /// Sets the error of texts that nothing can translate without Gemini.
    pub(crate) fn set_untranslatable(&mut self, texts: &[&str]) {
        self.0.extend(texts.iter().map(|text| ((*text).to_owned(), Err(no_translator()))));
    }

    /// Returns the translation of a text, or the text itself if it needs none.
    ///
    /// # Errors
    ///
    /// [`TranslationError`] if the text could not be translated.
    pub fn get(&self, text: &str) -> Result<String, TranslationError> {
        if !needs_translation(text) {
            return Ok(text.to_owned());
        }
        let not_requested = || Err(TranslationError::Failed("the translation was not requested".to_owned()));
        self.0.get(text).cloned().unwrap_or_else(not_requested)
    }
}

/// Finds the translations of texts in the phrase book and in the database. Returns the other texts that need a translation
/// too, each once.
///
/// # Errors
///
/// [`StoreError`] if the database fails.
pub(crate) async fn find_known<'a>(
    phrase_book: &PhraseBook,
    store: Option<&Store>,
    lookup: Lookup,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<(Translations, Vec<&'a str>), StoreError> {
    let mut translations = Translations::default();
    let mut seen = HashSet::new();
    let mut remaining: Vec<&str> =
        texts.into_iter().filter(|text| needs_translation(text) && seen.insert(*text)).collect();
    remaining.retain(|text| match phrase_book.translate(text) {
        None => true,
        Some(found) => {
            translations.0.insert((*text).to_owned(), Ok(found));
            false
        }
    });
    if let Some(store) = store.filter(|_| !remaining.is_empty()) {
        for (text, found) in store.find_translations(&remaining, lookup).await? {
            translations.0.insert(text, Ok(found));
        }
        remaining.retain(|text| !translations.0.contains_key(*text));
    }
    Ok((translations, remaining))
}

/// The error of a text that only Gemini could translate, if there is no key for it.
fn no_translator() -> TranslationError {
    let reason = "the text is not English, the phrase book has no translation, and GEMINI_API_KEY is not set";
    TranslationError::Failed(reason.to_owned())
}

/// Translates texts into English. Clones share all sources.
#[derive(Clone)]
pub struct Translator {
    phrase_book: PhraseBook,
    store: Store,
    gemini: Option<GeminiAccess>,
}

impl Translator {
    /// Creates a translator; no request is sent.
    ///
    /// # Errors
    ///
    /// [`SettingError`] if Gemini's API key is not a valid HTTP header value.
    pub fn new(settings: &TranslationSettings, store: Store) -> Result<Self, SettingError> {
        let key_file = settings.gemini_key_file.as_ref();
        let gemini = settings.gemini.as_ref().map(|gemini| GeminiAccess::new(gemini, key_file)).transpose()?;
        Ok(Self { phrase_book: settings.phrase_book.clone(), store, gemini })
    }

    /// Translates the texts that need it. Cancelling `stop` ends the wait for Gemini; texts without a translation by
    /// then have the error [`TranslationError::Unreachable`].
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the database fails.
    pub async fn translate<'a>(
        &self,
        texts: impl IntoIterator<Item = &'a str>,
        stop: &CancellationToken,
    ) -> Result<Translations, StoreError> {
        let (mut translations, remaining) =
            find_known(&self.phrase_book, Some(&self.store), Lookup::ForJob, texts).await?;
        let translated = self.translate_with_gemini(&remaining, stop).await?;
        translations.0.extend(remaining.into_iter().map(str::to_owned).zip(translated));
        Ok(translations)
    }

    /// Translates texts with Gemini and stores the translations in the database.
    async fn translate_with_gemini(
        &self,
        texts: &[&str],
        stop: &CancellationToken,
    ) -> Result<Vec<Result<String, TranslationError>>, StoreError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let Some(gemini) = &self.gemini else {
            return Ok(vec![Err(no_translator()); texts.len()]);
        };
        let gemini = gemini.client().await;
        let mut translated = gemini.translate(texts, stop).await;
        let new_translations: Vec<_> = texts
            .iter()
            .zip(&translated)
            .filter_map(|(text, result)| {
                let translations = result.as_ref().ok()?.clone();
                Some(Translation { original: (*text).to_owned(), translations })
            })
            .collect();
        self.store.save_translations(&new_translations, gemini.model()).await?;
        // If another job stored a translation first, use that one: all attempts of all jobs then use the same text.
        let stored = self.store.find_translations(texts, Lookup::ForJob).await?;
        for (text, result) in texts.iter().zip(&mut translated) {
            if let Some(translations) = stored.get(*text) {
                *result = Ok(translations.clone());
            }
        }
        if new_translations.len() == texts.len() {
            info!(texts = texts.len(), translator = gemini.model(), "texts translated");
        } else {
            let cause = translated.iter().find_map(|result| result.as_ref().err()).map(ToString::to_string);
            let failed = texts.len() - new_translations.len();
            warn!(
                texts = texts.len(),
                failed,
                cause,
                translator = gemini.model(),
                "some texts could not be translated"
            );
        }
        Ok(translated)
    }
}
