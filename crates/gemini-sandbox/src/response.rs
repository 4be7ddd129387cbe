//! Builds response bodies: translations from a dictionary in the API's format, altered by the fault.

use serde_json::{Value, json};

use crate::faults::Fault;
use crate::rules::NumberedText;

/// Known texts in Traditional and Simplified Chinese, with their translations.
const DICTIONARY: [(&str, &str); 12] = [
    ("一座寧靜的山景", "A serene mountain landscape"),
    ("一座宁静的山景", "A serene mountain landscape"),
    ("繁忙的城市街道", "A busy city street"),
    ("平靜的海灘", "A peaceful beach"),
    ("平静的海滩", "A peaceful beach"),
    ("一隻狐狸", "A fox"),
    ("一只狐狸", "A fox"),
    ("雨後的老街", "An old street after the rain"),
    ("電影感", "cinematic"),
    ("暖色調", "warm colors"),
    ("模糊", "blurry"),
    ("文字", "text"),
];

/// Translates a text by the dictionary.
///
/// Unknown characters are replaced by an English placeholder that says so and differs from text to text.
fn translate(text: &str) -> String {
    let mut english = text.to_owned();
    for (original, translated) in DICTIONARY {
        english = english.replace(original, translated);
    }
    let non_ascii: Vec<char> = english.chars().filter(|c| !c.is_ascii()).collect();
    if non_ascii.is_empty() {
        return english;
    }
    let codes: Vec<String> = non_ascii.iter().map(|c| format!("{:x}", u32::from(*c))).collect();
    let ascii: String = english.chars().filter(char::is_ascii).collect();
    let rest = if ascii.trim().is_empty() { String::new() } else { format!(", {}", ascii.trim()) };
    format!("A made-up picture {}{rest}", codes.join(" "))
}

/// The body of a response with status 200.
pub(crate) fn build_body(texts: &[NumberedText], model: &str, fault: Option<Fault>) -> Value {
    let mut translated: Vec<Value> = texts
        .iter()
        .map(|NumberedText { number, text }| {
            let english = if fault == Some(Fault::Chinese) { text.clone() } else { translate(text) };
            json!({"number": number, "english": english})
        })
        .collect();
    match fault {
        Some(Fault::Blocked) => {
            return json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "modelVersion": model});
        }
        Some(Fault::Safety) => return body_with_candidate(None, "SAFETY", model),
        Some(Fault::Short) => drop(translated.pop()),
        Some(Fault::Swapped) => translated.reverse(),
        _ => {}
    }
    let text = Value::from(translated).to_string();
    match fault {
        Some(Fault::MaxTokens) => {
            let half: String = text.chars().take(text.chars().count() / 2).collect();
            body_with_candidate(Some(&half), "MAX_TOKENS", model)
        }
        Some(Fault::Fenced) => body_with_candidate(Some(&format!("```json\n{text}\n```")), "STOP", model),
        Some(Fault::Prose) => body_with_candidate(Some("Here are your translations: a fox, a bear."), "STOP", model),
        _ => body_with_candidate(Some(&text), "STOP", model),
    }
}

fn body_with_candidate(text: Option<&str>, finish_reason: &str, model: &str) -> Value {
    let mut candidate = json!({"finishReason": finish_reason, "index": 0});
    if let Some(text) = text {
        candidate["content"] = json!({"parts": [{"text": text}], "role": "model"});
    }
    json!({"candidates": [candidate], "usageMetadata": {"totalTokenCount": 1}, "modelVersion": model})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_texts_are_translated_to_english() {
        assert_eq!(translate("一座寧靜的山景"), "A serene mountain landscape");
        assert_eq!(translate("一只狐狸, at dusk"), "A fox, at dusk");
        assert_eq!(translate("熊"), "A made-up picture 718a");
        assert_eq!(translate("熊 at dusk"), "A made-up picture 718a, at dusk");
        assert_ne!(translate("熊貓"), translate("熊"));
    }
}
