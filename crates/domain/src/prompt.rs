//! How a description becomes the text that is sent to the API.

/// Appended to every description when the command names no modifiers.
///
/// Source: the task document's `DEFAULT_STYLE_MODIFIERS`.
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
/// Source: the task document's `DEFAULT_NEGATIVE_PROMPT`.
pub const DEFAULT_NEGATIVE_PROMPT: &str = "blurry, low quality, distorted, watermark, text, logo, anime, cartoon";

/// Joins an English description and style modifiers with commas; `None` means the default modifiers.
///
/// Parts lose blanks and commas at both ends, and empty parts are left out. An empty list means the description alone.
///
/// ```
/// use domain::prompt::enhance_prompt;
/// let modifiers = ["cinematic lighting".to_owned(), "4k quality".to_owned()];
/// assert_eq!(
///     enhance_prompt("A busy city street", Some(&modifiers)),
///     "A busy city street, cinematic lighting, 4k quality"
/// );
/// ```
pub fn enhance_prompt(description: &str, modifiers: Option<&[String]>) -> String {
    let modifiers: Vec<&str> = match modifiers {
        None => DEFAULT_STYLE_MODIFIERS.to_vec(),
        Some(modifiers) => modifiers.iter().map(String::as_str).collect(),
    };
    std::iter::once(description)
        .chain(modifiers)
        .map(|part| part.trim_matches(|c: char| c.is_whitespace() || c == ','))
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(", ")
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

    /// The task document's test 5.
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

    proptest! {
        #[test]
        fn a_prompt_never_starts_or_ends_with_a_blank_or_a_comma(
            description in "\\PC{0,40}",
            modifiers in proptest::collection::vec("[ ,a-z]{0,12}", 0..6),
        ) {
            let prompt = enhance_prompt(&description, Some(&modifiers));
            prop_assert_eq!(prompt.trim_matches(|c: char| c.is_whitespace() || c == ','), prompt.as_str());
        }

        #[test]
        fn every_modifier_that_says_something_stands_in_the_prompt(
            modifiers in proptest::collection::vec("[a-z]{1,12}", 0..8),
        ) {
            let prompt = enhance_prompt("x", Some(&modifiers));
            prop_assert_eq!(prompt.split(", ").skip(1).collect::<Vec<_>>(), modifiers);
        }
    }
}
