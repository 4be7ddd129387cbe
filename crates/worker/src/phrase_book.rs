//! Phrase book: a file of fixed translations, for example names and terms of a series. It needs no API key.
//!
//! The file is a JSON object that maps each text to its English translation:
//! `{"一座寧靜的山景": "A serene mountain landscape"}`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use domain::prompt::needs_translation;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

/// Texts with their English translations. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct PhraseBook(Arc<HashMap<String, String>>);

/// A file is not a valid phrase book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPhraseBook(String);

impl PhraseBook {
    /// Parses a phrase book from JSON.
    ///
    /// # Errors
    ///
    /// [`InvalidPhraseBook`] names the invalid entry: a duplicate, a text that needs no translation, or a translation
    /// that is empty or not English.
    pub fn parse(text: &str) -> Result<Self, InvalidPhraseBook> {
        let Entries(entries) = serde_json::from_str(text)
            .map_err(|error| InvalidPhraseBook(format!("expected a JSON object whose values are strings ({error})")))?;
        let mut phrases = HashMap::new();
        for (original, english) in entries {
            let invalid = |reason: &str| Err(InvalidPhraseBook(format!("{original:?}: {english:?} {reason}")));
            if !needs_translation(&original) {
                return invalid("is not allowed; the key must be a text that needs translation");
            }
            let english_text = english.trim();
            if english_text.is_empty() || needs_translation(english_text) {
                return invalid("is not allowed; the value must be an English text");
            }
            if phrases.insert(normalize(&original).to_owned(), english_text.to_owned()).is_some() {
                return invalid("is a duplicate; each text may occur only once");
            }
        }
        Ok(Self(Arc::new(phrases)))
    }

    /// Number of texts in the phrase book.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the phrase book has no texts.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Translates a text as a whole, or else each of its comma-separated parts; `None` if a part has no translation.
    pub fn translate(&self, text: &str) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        if let Some(english) = self.0.get(normalize(text)) {
            return Some(english.clone());
        }
        let parts = text.split([',', '，', '、']).map(normalize).filter(|part| !part.is_empty());
        let english = parts.map(|part| {
            let known = self.0.get(part).map(String::as_str);
            known.or_else(|| (!needs_translation(part)).then_some(part))
        });
        Some(english.collect::<Option<Vec<_>>>()?.join(", ")).filter(|english| !english.is_empty())
    }
}

/// Removes surrounding whitespace and full stops at the end, which make no difference to a lookup.
fn normalize(text: &str) -> &str {
    text.trim().trim_end_matches(['。', '.']).trim_end()
}

/// The entries of a JSON object in their order, including duplicate keys.
struct Entries(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose values are strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phrase_book() -> PhraseBook {
        PhraseBook::parse(
            r#"{"一座寧靜的山景": "A serene mountain landscape", "電影感": " cinematic ", "阿里山": "Alishan"}"#,
        )
        .expect("a valid phrase book")
    }

    #[test]
    fn text_is_translated_whole_or_by_comma_separated_parts() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(phrase_book().translate(text).as_deref(), expected, "{text}");
        };
        check("一座寧靜的山景", Some("A serene mountain landscape"));
        check(" 一座寧靜的山景。 ", Some("A serene mountain landscape"));
        check("一座寧靜的山景，電影感", Some("A serene mountain landscape, cinematic"));
        check("阿里山、at dusk, 電影感", Some("Alishan, at dusk, cinematic"));
        check("阿里山的日出", None);
        check("阿里山，日出", None);
        check("，", None);
        assert_eq!(PhraseBook::default().translate("阿里山"), None);
        assert_eq!(phrase_book().len(), 3);
    }

    #[test]
    fn invalid_phrase_book_is_rejected_with_its_entry() {
        let check = |text: &str, expected: &str| {
            let error = PhraseBook::parse(text).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check("[]", "expected a JSON object whose values are strings");
        check(r#"{"狐狸": 1}"#, "expected a JSON object whose values are strings");
        check(r#"{"狐狸": ""}"#, "\"狐狸\": \"\" is not allowed; the value must be an English text");
        check(r#"{"fox": "wolf"}"#, "\"fox\": \"wolf\" is not allowed; the key must be a text that needs translation");
        check(r#"{"狐狸": "狐狸"}"#, "\"狐狸\": \"狐狸\" is not allowed; the value must be an English text");
        check(r#"{"狐狸": "fox", "狐狸。": "a fox"}"#, "\"狐狸。\": \"a fox\" is a duplicate");
    }
}
