//! What comes back from the API.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use stability_client::Engine;
use stability_client::fuzzing::read_answer;

use crate::assert_sentence;

/// Reads bytes as an answer: lines of headers, of which the first holds the status (and `v2` for the API of that name), an empty line, and the body.
/// Whatever it is, there is a picture or one sentence.
pub fn answer(bytes: &[u8]) {
    let end = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
    let (head, body) = (&bytes[..end], bytes.get(end + 2..).unwrap_or_default());
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let status = first.split(' ').find_map(|word| word.parse().ok()).unwrap_or(200);
    let engine = if first.contains("v2") { Engine::Core } else { Engine::Sdxl10 };
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    match read_answer(engine.family(), status, &headers, body.to_vec()) {
        Ok(pictures) => {
            assert!(!pictures.is_empty() && status == 200);
            assert!(pictures.iter().all(|picture| !picture.image.is_empty()));
        }
        Err(error) => {
            let class = error.class();
            assert!(!(class.retryable && class.fatal), "{error}");
            assert!(error.retry_after().is_none_or(|wait| wait <= Duration::from_hours(1)));
            assert_sentence(&error.to_string());
        }
    }
}
