//! What is answered: translations from a dictionary, in the API's envelope, or broken as the fault says.

use serde_json::{Value, json};

use crate::faults::Fault;
use crate::rules::Numbered;

/// What the sandbox can translate; Traditional and Simplified.
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

/// The English of a text. What is not in the dictionary is turned into English that differs from text to text, and says that it is made up.
fn english(text: &str) -> String {
    let mut english = text.to_owned();
    for (original, translated) in DICTIONARY {
        english = english.replace(original, translated);
    }
    let foreign: Vec<char> = english.chars().filter(|c| !c.is_ascii()).collect();
    if foreign.is_empty() {
        return english;
    }
    let codes: Vec<String> = foreign.iter().map(|c| format!("{:x}", u32::from(*c))).collect();
    let ascii: String = english.chars().filter(char::is_ascii).collect();
    let rest = if ascii.trim().is_empty() { String::new() } else { format!(", {}", ascii.trim()) };
    format!("A made-up picture {}{rest}", codes.join(" "))
}

/// The body of a good status.
pub(crate) fn body(texts: &[Numbered], model: &str, fault: Option<Fault>) -> Value {
    let mut translated: Vec<Value> = texts
        .iter()
        .map(|Numbered { number, text }| {
            let english = if fault == Some(Fault::Chinese) { text.clone() } else { english(text) };
            json!({"number": number, "english": english})
        })
        .collect();
    match fault {
        Some(Fault::Blocked) => {
            return json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "modelVersion": model});
        }
        Some(Fault::Safety) => return candidate(None, "SAFETY", model),
        Some(Fault::Short) => drop(translated.pop()),
        Some(Fault::Swapped) => translated.reverse(),
        _ => {}
    }
    let text = Value::from(translated).to_string();
    match fault {
        Some(Fault::MaxTokens) => {
            let half: String = text.chars().take(text.chars().count() / 2).collect();
            candidate(Some(&half), "MAX_TOKENS", model)
        }
        Some(Fault::Fenced) => candidate(Some(&format!("```json\n{text}\n```")), "STOP", model),
        Some(Fault::Prose) => candidate(Some("Here are your translations: a fox, a bear."), "STOP", model),
        _ => candidate(Some(&text), "STOP", model),
    }
}

fn candidate(text: Option<&str>, finish_reason: &str, model: &str) -> Value {
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
    fn a_text_becomes_english_whether_it_is_known_or_not() {
        assert_eq!(english("一座寧靜的山景"), "A serene mountain landscape");
        assert_eq!(english("一只狐狸, at dusk"), "A fox, at dusk");
        assert_eq!(english("熊"), "A made-up picture 718a");
        assert_eq!(english("熊 at dusk"), "A made-up picture 718a, at dusk");
        assert_ne!(english("熊貓"), english("熊"));
    }
}
