//! Translations that are fixed: names and terms of a series, and a translator that needs no key.
//!
//! A JSON object, each key a text and its value the English: `{"一座寧靜的山景": "A serene mountain landscape"}`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use domain::prompt::needs_translation;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

/// Texts with their English. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct PhraseBook(Arc<HashMap<String, String>>);

/// A file that is no phrase book.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPhraseBook(String);

impl PhraseBook {
    /// Reads a phrase book.
    ///
    /// # Errors
    ///
    /// [`InvalidPhraseBook`] names the entry: one that stands there twice, or whose English is empty or not English.
    pub fn parse(text: &str) -> Result<Self, InvalidPhraseBook> {
        let Entries(entries) = serde_json::from_str(text)
            .map_err(|error| InvalidPhraseBook(format!("a JSON object of texts is expected ({error})")))?;
        let mut phrases = HashMap::new();
        for (original, english) in entries {
            let refused = |why: &str| Err(InvalidPhraseBook(format!("{original:?}: {english:?} {why}")));
            if !needs_translation(&original) {
                return refused("is not allowed; a text that needs translation");
            }
            let english_text = english.trim();
            if english_text.is_empty() || needs_translation(english_text) {
                return refused("is not allowed; an English text");
            }
            if phrases.insert(normal(&original).to_owned(), english_text.to_owned()).is_some() {
                return refused("stands there twice; each text once");
            }
        }
        Ok(Self(Arc::new(phrases)))
    }

    /// How many texts it holds.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The English of a text: of the whole of it, or else of all that stands between its commas.
    pub fn english(&self, text: &str) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        if let Some(english) = self.0.get(normal(text)) {
            return Some(english.clone());
        }
        let parts = text.split([',', '，', '、']).map(normal).filter(|part| !part.is_empty());
        let english = parts.map(|part| {
            let known = self.0.get(part).map(String::as_str);
            known.or_else(|| (!needs_translation(part)).then_some(part))
        });
        Some(english.collect::<Option<Vec<_>>>()?.join(", ")).filter(|english| !english.is_empty())
    }
}

/// Without what makes no difference: blanks around it and a full stop at its end.
fn normal(text: &str) -> &str {
    text.trim().trim_end_matches(['。', '.']).trim_end()
}

/// The entries of an object in their order, repeats included.
struct Entries(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose values are texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book() -> PhraseBook {
        PhraseBook::parse(
            r#"{"一座寧靜的山景": "A serene mountain landscape", "電影感": " cinematic ", "阿里山": "Alishan"}"#,
        )
        .expect("a phrase book")
    }

    #[test]
    fn a_text_is_found_whole_or_by_what_stands_between_its_commas() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(book().english(text).as_deref(), expected, "{text}");
        check("一座寧靜的山景", Some("A serene mountain landscape"));
        check(" 一座寧靜的山景。 ", Some("A serene mountain landscape"));
        check("一座寧靜的山景，電影感", Some("A serene mountain landscape, cinematic"));
        check("阿里山、at dusk, 電影感", Some("Alishan, at dusk, cinematic"));
        check("阿里山的日出", None);
        check("阿里山，日出", None);
        check("，", None);
        assert_eq!(PhraseBook::default().english("阿里山"), None);
        assert_eq!(book().len(), 3);
    }

    #[test]
    fn a_file_that_is_no_phrase_book_is_refused_by_its_entry() {
        let check = |text: &str, expected: &str| {
            let error = PhraseBook::parse(text).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check("[]", "a JSON object of texts is expected");
        check(r#"{"狐狸": 1}"#, "a JSON object of texts is expected");
        check(r#"{"狐狸": ""}"#, "\"狐狸\": \"\" is not allowed; an English text");
        check(r#"{"fox": "wolf"}"#, "\"fox\": \"wolf\" is not allowed; a text that needs translation");
        check(r#"{"狐狸": "狐狸"}"#, "\"狐狸\": \"狐狸\" is not allowed; an English text");
        check(r#"{"狐狸": "fox", "狐狸。": "a fox"}"#, "\"狐狸。\": \"a fox\" stands there twice");
    }
}
