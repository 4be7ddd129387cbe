//! Responses of the image API.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use stability_client::Engine;
use stability_client::fuzzing::decode_response;

use crate::assert_valid_message;

/// Decodes bytes as a response: header lines, an empty line, and the body.
///
/// The first line contains the status, and `v2` for the v2beta API. Every input must give at least one image, or an
/// error with a valid message.
pub fn check_answer(bytes: &[u8]) {
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
    match decode_response(engine.api_version(), status, &headers, body.to_vec()) {
        Ok(pictures) => {
            assert!(!pictures.is_empty() && status == 200);
            assert!(pictures.iter().all(|picture| !picture.bytes.is_empty()));
        }
        Err(error) => {
            let class = error.class();
            assert!(!(class.retryable && class.fatal), "{error}");
            assert!(error.retry_after().is_none_or(|wait| wait <= Duration::from_hours(1)));
            assert_valid_message(&error.to_string());
        }
    }
}
