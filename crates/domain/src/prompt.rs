//! How a description becomes the text that is sent to the API.

use std::collections::HashSet;

/// What stands between the parts of a prompt.
const SEPARATOR: &str = ", ";

/// Appended to every description when the command names no modifiers.
///
/// Fixed by the contract with the pipeline.
pub const DEFAULT_STYLE_MODIFIERS: [&str; 6] = [
    "cinematic lighting",
    "professional photography",
    "4k quality",
    "highly detailed",
    "photorealistic",
    "warm color palette",
];

/// What no picture shall show when the command names no negative prompt.
///
/// Fixed by the contract with the pipeline.
pub const DEFAULT_NEGATIVE_PROMPT: &str = "blurry, low quality, distorted, watermark, text, logo, anime, cartoon";

/// The text that is sent to the API, and what did not fit into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed {
    /// The prompt.
    pub text: String,
    /// The parts at its end that were left out, in their order.
    pub left_out: Vec<String>,
}

/// A text that is longer than the engine takes, and may not be shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{chars} characters are more than the engine takes; at most {max_chars}")]
pub struct TooLong {
    /// How long it is.
    pub chars: usize,
    /// What the engine takes.
    pub max_chars: usize,
}

/// Joins an English description and style modifiers with commas; `None` means the default modifiers.
///
/// Parts lose blanks and commas at both ends, and empty parts are left out. An empty list means the description alone. A modifier that
/// stands there already, whatever its case, is dropped. The description goes in whole; then the modifiers as far as they fit.
///
/// # Errors
///
/// [`TooLong`] where the description alone is longer than `max_chars`.
///
/// ```
/// use asset_domain::prompt::compose;
/// let modifiers = ["cinematic lighting".to_owned(), "4k quality".to_owned()];
/// let composed = compose("A busy city street", Some(&modifiers), 2_000)?;
/// assert_eq!(composed.text, "A busy city street, cinematic lighting, 4k quality");
/// # Ok::<_, asset_domain::prompt::TooLong>(())
/// ```
pub fn compose(description: &str, modifiers: Option<&[String]>, max_chars: usize) -> Result<Composed, TooLong> {
    let description = trimmed(description);
    let chars = description.chars().count();
    if chars > max_chars {
        return Err(TooLong { chars, max_chars });
    }
    let modifiers: Vec<&str> = match modifiers {
        None => DEFAULT_STYLE_MODIFIERS.to_vec(),
        Some(modifiers) => modifiers.iter().map(String::as_str).collect(),
    };
    Ok(filled(description, modifiers.into_iter().flat_map(parts), max_chars))
}

/// A list of things with commas between them, such as a negative prompt, as far as it fits.
///
/// # Errors
///
/// [`TooLong`] where its first part alone is longer than `max_chars`.
pub fn shortened(list: &str, max_chars: usize) -> Result<Composed, TooLong> {
    let mut parts = parts(list);
    let first = parts.next().unwrap_or_default();
    let chars = first.chars().count();
    if chars > max_chars {
        return Err(TooLong { chars, max_chars });
    }
    let repeated = first.to_lowercase();
    Ok(filled(first, parts.filter(move |part| part.to_lowercase() != repeated), max_chars))
}

/// Appends parts to `text` until one does not fit; repeats are dropped.
fn filled<'a>(text: &str, parts: impl Iterator<Item = &'a str>, max_chars: usize) -> Composed {
    let mut chars = text.chars().count();
    let mut text = text.to_owned();
    let mut seen = HashSet::new();
    let mut left_out: Vec<String> = Vec::new();
    for part in parts.filter(|part| seen.insert(part.to_lowercase())) {
        let separator = if text.is_empty() { "" } else { SEPARATOR };
        let longer = chars + separator.len() + part.chars().count();
        if left_out.is_empty() && longer <= max_chars {
            text = text + separator + part;
            chars = longer;
        } else {
            left_out.push(part.to_owned());
        }
    }
    Composed { text, left_out }
}

/// What stands between the commas of a list.
fn parts(list: &str) -> impl Iterator<Item = &str> {
    list.split(is_comma).map(str::trim).filter(|part| !part.is_empty())
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || is_comma(c))
}

/// Commas of English and of Chinese.
fn is_comma(c: char) -> bool {
    matches!(c, ',' | '\u{FF0C}' | '\u{3001}')
}

/// Whether a text holds writing that SDXL does not understand (Han, kana, hangul, bopomofo).
///
/// Such a text is never sent to the API.
pub fn needs_translation(text: &str) -> bool {
    text.chars().any(|c| {
        matches!(c,
            '\u{1100}'..='\u{11FF}'      // hangul jamo
            | '\u{2E80}'..='\u{2FDF}'    // radicals
            | '\u{3005}'..='\u{3007}'    // iteration mark, zero
            | '\u{3040}'..='\u{31FF}'    // kana, bopomofo, compatibility jamo, strokes
            | '\u{3400}'..='\u{4DBF}'    // Han, extension A
            | '\u{4E00}'..='\u{9FFF}'    // Han
            | '\u{A960}'..='\u{A97F}'    // hangul jamo, extension A
            | '\u{AC00}'..='\u{D7FF}'    // hangul
            | '\u{F900}'..='\u{FAFF}'    // Han, compatibility
            | '\u{FF66}'..='\u{FFDC}'    // kana and hangul, half width
            | '\u{20000}'..='\u{3FFFF}') // Han, extensions
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|part| (*part).to_owned()).collect()
    }

    /// A prompt that has all the room it needs.
    fn enhance_prompt(description: &str, modifiers: Option<&[String]>) -> String {
        let composed = compose(description, modifiers, usize::MAX).expect("there is room");
        assert_eq!(composed.left_out, [""; 0]);
        composed.text
    }

    /// Test 5.
    #[test]
    fn test_5_a_prompt_is_the_description_and_its_modifiers_joined_by_commas() {
        let check = |description: &str, modifiers: &[&str], expected: &str| {
            assert_eq!(enhance_prompt(description, Some(&owned(modifiers))), expected);
        };
        check(
            "A serene mountain",
            &["cinematic lighting", "4k quality"],
            "A serene mountain, cinematic lighting, 4k quality",
        );
        check(
            "A serene mountain landscape",
            &["cinematic lighting", "professional photography", "4k quality", "highly detailed", "photorealistic"],
            "A serene mountain landscape, cinematic lighting, professional photography, 4k quality, highly detailed, photorealistic",
        );
        check("A beach", &[], "A beach");
        check("  A beach , ", &[" , 4k quality,", "", " , "], "A beach, 4k quality");
        check("Sun, sea and sand", &["warm"], "Sun, sea and sand, warm");
    }

    #[test]
    fn without_modifiers_in_the_command_the_default_six_are_used() {
        assert_eq!(
            enhance_prompt("A fox", None),
            "A fox, cinematic lighting, professional photography, 4k quality, highly detailed, photorealistic, warm color palette"
        );
    }

    #[test]
    fn chinese_needs_translation_and_european_languages_do_not() {
        for text in ["一座寧靜的山景", "A 山 view", "ひらがな", "한국어", "\u{1112}\u{1161}\u{11AB}", "ｶﾀｶﾅ", "ㄅㄆㄇ"]
        {
            assert!(needs_translation(text), "{text}");
        }
        for text in ["A serene mountain", "Café à Paris, naïve œuvre", "Ünïcödé — “quotes” 🎨", ""] {
            assert!(!needs_translation(text), "{text}");
        }
    }

    #[test]
    fn a_modifier_that_stands_there_already_is_dropped() {
        let check = |modifiers: &[&str], expected: &str| {
            assert_eq!(enhance_prompt("A fox", Some(&owned(modifiers))), expected);
        };
        check(&["4k quality", "warm", " 4K Quality, "], "A fox, 4k quality, warm");
        check(&["warm, soft light", "soft light, 4k"], "A fox, warm, soft light, 4k");
        check(&["warm，soft、4k"], "A fox, warm, soft, 4k");
    }

    #[test]
    fn a_prompt_that_is_too_long_is_shortened_at_a_comma_from_its_end() {
        let modifiers = owned(&["warm light", "soft, shallow focus", "4k"]);
        let check = |max_chars: usize, text: &str, left_out: &[&str]| {
            let composed = compose("A fox", Some(&modifiers), max_chars).expect("the description fits");
            assert_eq!(composed, Composed { text: text.to_owned(), left_out: owned(left_out) }, "{max_chars}");
        };
        check(44, "A fox, warm light, soft, shallow focus, 4k", &[]);
        check(42, "A fox, warm light, soft, shallow focus, 4k", &[]);
        // What comes after a part that does not fit is left out too, however short: the order is the author's.
        check(41, "A fox, warm light, soft, shallow focus", &["4k"]);
        check(37, "A fox, warm light, soft", &["shallow focus", "4k"]);
        check(5, "A fox", &["warm light", "soft", "shallow focus", "4k"]);
        let refused = compose("A fox", Some(&modifiers), 4).expect_err("the description does not fit");
        assert_eq!(refused.to_string(), "5 characters are more than the engine takes; at most 4");
        // Characters are counted, not bytes.
        assert_eq!(compose("Café à", Some(&[]), 6).map(|composed| composed.text), Ok("Café à".to_owned()));
    }

    #[test]
    fn a_negative_prompt_is_shortened_at_a_comma_too() {
        let check = |max_chars, expected: Result<(&str, &[&str]), TooLong>| {
            let expected =
                expected.map(|(text, left_out)| Composed { text: text.to_owned(), left_out: owned(left_out) });
            assert_eq!(shortened("blurry,  text, logo, Text, Blurry", max_chars), expected);
        };
        check(100, Ok(("blurry, text, logo", &[])));
        check(17, Ok(("blurry, text", &["logo"])));
        check(5, Err(TooLong { chars: 6, max_chars: 5 }));
        assert_eq!(shortened("", 10), Ok(Composed { text: String::new(), left_out: vec![] }));
    }

    proptest! {
        #[test]
        fn a_prompt_is_never_longer_than_the_engine_takes(
            description in "\\PC{1,40}",
            modifiers in proptest::collection::vec("[ ,a-zé]{0,12}", 0..6),
            max_chars in 0..80_usize,
        ) {
            if let Ok(composed) = compose(&description, Some(&modifiers), max_chars) {
                prop_assert!(composed.text.chars().count() <= max_chars);
            }
        }

        #[test]
        fn a_prompt_never_starts_or_ends_with_a_blank_or_a_comma(
            description in "\\PC{0,40}",
            modifiers in proptest::collection::vec("[ ,a-z]{0,12}", 0..6),
        ) {
            let prompt = enhance_prompt(&description, Some(&modifiers));
            prop_assert_eq!(trimmed(&prompt), prompt.as_str());
        }

        #[test]
        fn every_modifier_that_says_something_stands_in_the_prompt(
            modifiers in proptest::collection::vec("[a-z]{1,12}", 0..8),
        ) {
            let prompt = enhance_prompt("x", Some(&modifiers));
            let mut once = Vec::new();
            for modifier in &modifiers {
                if !once.contains(modifier) {
                    once.push(modifier.clone());
                }
            }
            prop_assert_eq!(prompt.split(", ").skip(1).collect::<Vec<_>>(), once);
        }
    }
}
