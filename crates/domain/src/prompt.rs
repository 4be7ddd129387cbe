//! Composes the prompt that is sent to the API from a description and style modifiers.

use std::collections::HashSet;

use unicode_script::{Script, UnicodeScript};

/// Separates the parts of a prompt.
const SEPARATOR: &str = ", ";

/// Appended to every description if the command names no style modifiers.
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

/// The negative prompt if the command names none.
///
/// Fixed by the contract with the pipeline.
pub const DEFAULT_NEGATIVE_PROMPT: &str = "blurry, low quality, distorted, watermark, text, logo, anime, cartoon";

/// The prompt that is sent to the API, and the parts that did not fit into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposedPrompt {
    /// The prompt.
    pub text: String,
    /// The parts that were left out at its end, in their original order.
    pub left_out: Vec<String>,
}

/// A text that exceeds the engine's limit and must not be shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{chars} characters exceed the engine's limit of {max_chars}")]
pub struct PromptTooLong {
    /// Length of the text, in characters.
    pub chars: usize,
    /// The engine's limit, in characters.
    pub max_chars: usize,
}

/// Joins an English description and style modifiers with commas; `None` means the default modifiers.
///
/// White space and commas at both ends of each part are removed, and so is a full stop before a comma; empty parts are
/// dropped. An empty list means the
/// description alone. A modifier that repeats an earlier one, ignoring case, is dropped. The description is never
/// shortened; modifiers are appended until one does not fit; that one and all after it are left out.
///
/// # Errors
///
/// [`PromptTooLong`] if the description alone is longer than `max_chars`.
///
/// ```
/// use asset_domain::prompt::compose;
/// let modifiers = ["cinematic lighting".to_owned(), "4k quality".to_owned()];
/// let composed = compose("A busy city street", Some(&modifiers), 2_000)?;
/// assert_eq!(composed.text, "A busy city street, cinematic lighting, 4k quality");
/// # Ok::<_, asset_domain::prompt::PromptTooLong>(())
/// ```
pub fn compose(
    description: &str,
    modifiers: Option<&[String]>,
    max_chars: usize,
) -> Result<ComposedPrompt, PromptTooLong> {
    let description = trim_separators(description);
    let chars = description.chars().count();
    if chars > max_chars {
        return Err(PromptTooLong { chars, max_chars });
    }
    let modifiers: Vec<&str> = match modifiers {
        None => DEFAULT_STYLE_MODIFIERS.to_vec(),
        Some(modifiers) => modifiers.iter().map(String::as_str).collect(),
    };
    Ok(append_parts(description, modifiers.into_iter().flat_map(split_parts), max_chars))
}

/// Shortens a comma-separated list, such as a negative prompt, to the parts that fit into `max_chars`.
///
/// # Errors
///
/// [`PromptTooLong`] if the first part alone is longer than `max_chars`.
pub fn shorten_list(list: &str, max_chars: usize) -> Result<ComposedPrompt, PromptTooLong> {
    let mut parts = split_parts(list);
    let first = parts.next().unwrap_or_default();
    let chars = first.chars().count();
    if chars > max_chars {
        return Err(PromptTooLong { chars, max_chars });
    }
    let repeated = first.to_lowercase();
    Ok(append_parts(first, parts.filter(move |part| part.to_lowercase() != repeated), max_chars))
}

/// Appends parts to `text` until one does not fit; duplicates are dropped.
fn append_parts<'a>(text: &str, parts: impl Iterator<Item = &'a str>, max_chars: usize) -> ComposedPrompt {
    let mut text = text.to_owned();
    let mut seen = HashSet::new();
    let mut left_out: Vec<String> = Vec::new();
    for part in parts.filter(|part| seen.insert(part.to_lowercase())) {
        // No full stop before a comma.
        let before = text.trim_end_matches(|c: char| is_full_stop(c) || is_separator(c));
        let separator = if before.is_empty() { "" } else { SEPARATOR };
        let new_chars = before.chars().count() + separator.len() + part.chars().count();
        if left_out.is_empty() && new_chars <= max_chars {
            text = format!("{before}{separator}{part}");
        } else {
            left_out.push(part.to_owned());
        }
    }
    ComposedPrompt { text, left_out }
}

/// Whether a description says anything: it consists of more than white space, commas and full stops.
pub fn says_something(description: &str) -> bool {
    description.chars().any(|c| !is_separator(c) && !is_full_stop(c))
}

/// The non-empty parts of a comma-separated list, trimmed.
fn split_parts(list: &str) -> impl Iterator<Item = &str> {
    list.split(is_comma).map(str::trim).filter(|part| !part.is_empty())
}

fn trim_separators(text: &str) -> &str {
    text.trim_matches(is_separator)
}

fn is_separator(c: char) -> bool {
    c.is_whitespace() || is_comma(c)
}

/// English and Chinese full stops.
fn is_full_stop(c: char) -> bool {
    matches!(c, '.' | '\u{3002}' | '\u{FF0E}')
}

/// English and Chinese commas.
fn is_comma(c: char) -> bool {
    matches!(c, ',' | '\u{FF0C}' | '\u{3001}')
}

/// Whether a text contains letters of a script that the engines do not read: any but Latin.
///
/// Such a text is never sent to the API. Digits, punctuation and emoji belong to no script.
pub fn needs_translation(text: &str) -> bool {
    text.chars().any(|c| !matches!(c.script(), Script::Latin | Script::Common | Script::Inherited | Script::Unknown))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn to_strings(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|part| (*part).to_owned()).collect()
    }

    /// Composes a prompt without a limit.
    fn enhance_prompt(description: &str, modifiers: Option<&[String]>) -> String {
        let composed = compose(description, modifiers, usize::MAX).expect("there is no limit");
        assert_eq!(composed.left_out, [""; 0]);
        composed.text
    }

    /// Test 5.
    #[test]
    fn test_5_prompt_joins_description_and_modifiers_with_commas() {
        let check = |description: &str, modifiers: &[&str], expected: &str| {
            assert_eq!(enhance_prompt(description, Some(&to_strings(modifiers))), expected);
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
    fn full_stop_before_a_comma_is_dropped() {
        let check = |description: &str, modifiers: &[&str], expected: &str| {
            assert_eq!(enhance_prompt(description, Some(&to_strings(modifiers))), expected);
        };
        check("A fox.", &["4k quality"], "A fox, 4k quality");
        check("A fox. It sleeps. ", &["warm.", "4k."], "A fox. It sleeps, warm, 4k.");
        check("一座山。", &["4k"], "一座山, 4k");
        check("A fox...", &["4k"], "A fox, 4k");
        check("A fox!", &["4k"], "A fox!, 4k");
        check("A fox.", &[], "A fox.");
        assert!(!says_something(" .。,") && says_something("🦊") && says_something("A fox."));
    }

    #[test]
    fn missing_modifiers_mean_the_default_six() {
        assert_eq!(
            enhance_prompt("A fox", None),
            "A fox, cinematic lighting, professional photography, 4k quality, highly detailed, photorealistic, warm color palette"
        );
    }

    #[test]
    fn every_script_but_latin_needs_translation() {
        for text in [
            "一座寧靜的山景",
            "A 山 view",
            "ひらがな",
            "한국어",
            "\u{1112}\u{1161}\u{11AB}",
            "ｶﾀｶﾅ",
            "ㄅㄆㄇ",
            "Спокойный горный пейзаж",
            "منظر جبلي هادئ",
            "ภูเขาอันเงียบสงบ",
            "एक शांत पहाड़",
            "Ένα ήσυχο βουνό",
            "הר שליו",
            "მთა",
            "A fox, 4к",
        ] {
            assert!(needs_translation(text), "{text}");
        }
        for text in [
            "A serene mountain",
            "Café à Paris, naïve œuvre",
            "Một ngọn núi yên tĩnh",
            "Ünïcödé — “quotes” 🎨",
            "e\u{301}",
            "50 µm × 3 °C, №5 ½ €",
            "",
        ] {
            assert!(!needs_translation(text), "{text}");
        }
    }

    #[test]
    fn duplicate_modifier_is_dropped() {
        let check = |modifiers: &[&str], expected: &str| {
            assert_eq!(enhance_prompt("A fox", Some(&to_strings(modifiers))), expected);
        };
        check(&["4k quality", "warm", " 4K Quality, "], "A fox, 4k quality, warm");
        check(&["warm, soft light", "soft light, 4k"], "A fox, warm, soft light, 4k");
        check(&["warm，soft、4k"], "A fox, warm, soft, 4k");
    }

    #[test]
    fn long_prompt_loses_whole_parts_from_its_end() {
        let modifiers = to_strings(&["warm light", "soft, shallow focus", "4k"]);
        let check = |max_chars: usize, text: &str, left_out: &[&str]| {
            let composed = compose("A fox", Some(&modifiers), max_chars).expect("the description fits");
            assert_eq!(
                composed,
                ComposedPrompt { text: text.to_owned(), left_out: to_strings(left_out) },
                "{max_chars}"
            );
        };
        check(44, "A fox, warm light, soft, shallow focus, 4k", &[]);
        check(42, "A fox, warm light, soft, shallow focus, 4k", &[]);
        // All parts after one that does not fit are left out too, even short ones, to keep the order of the modifiers.
        check(41, "A fox, warm light, soft, shallow focus", &["4k"]);
        check(37, "A fox, warm light, soft", &["shallow focus", "4k"]);
        check(5, "A fox", &["warm light", "soft", "shallow focus", "4k"]);
        let refused = compose("A fox", Some(&modifiers), 4).expect_err("the description does not fit");
        assert_eq!(refused.to_string(), "5 characters exceed the engine's limit of 4");
        // Characters are counted, not bytes.
        assert_eq!(compose("Café à", Some(&[]), 6).map(|composed| composed.text), Ok("Café à".to_owned()));
    }

    #[test]
    fn long_negative_prompt_is_cut_at_a_comma() {
        let check = |max_chars, expected: Result<(&str, &[&str]), PromptTooLong>| {
            let expected = expected
                .map(|(text, left_out)| ComposedPrompt { text: text.to_owned(), left_out: to_strings(left_out) });
            assert_eq!(shorten_list("blurry,  text, logo, Text, Blurry", max_chars), expected);
        };
        check(100, Ok(("blurry, text, logo", &[])));
        check(17, Ok(("blurry, text", &["logo"])));
        check(5, Err(PromptTooLong { chars: 6, max_chars: 5 }));
        assert_eq!(shorten_list("", 10), Ok(ComposedPrompt { text: String::new(), left_out: vec![] }));
    }

    proptest! {
        #[test]
        fn prompt_never_exceeds_the_engine_limit(
            description in "\\PC{1,40}",
            modifiers in proptest::collection::vec("[ ,a-zé]{0,12}", 0..6),
            max_chars in 0..80_usize,
        ) {
            if let Ok(composed) = compose(&description, Some(&modifiers), max_chars) {
                prop_assert!(composed.text.chars().count() <= max_chars);
            }
        }

        #[test]
        fn prompt_has_no_leading_or_trailing_blank_or_comma(
            description in "\\PC{0,40}",
            modifiers in proptest::collection::vec("[ ,a-z]{0,12}", 0..6),
        ) {
            let prompt = enhance_prompt(&description, Some(&modifiers));
            prop_assert_eq!(trim_separators(&prompt), prompt.as_str());
        }

        #[test]
        fn prompt_contains_every_distinct_modifier_once(
            modifiers in proptest::collection::vec("[a-z]{1,12}", 0..8),
        ) {
            let prompt = enhance_prompt("x", Some(&modifiers));
            let mut distinct = Vec::new();
            for modifier in &modifiers {
                if !distinct.contains(modifier) {
                    distinct.push(modifier.clone());
                }
            }
            prop_assert_eq!(prompt.split(", ").skip(1).collect::<Vec<_>>(), distinct);
        }
    }
}
