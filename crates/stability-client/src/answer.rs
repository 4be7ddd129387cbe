//! What a good status carries.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::error::Error;

/// The longest body that is read, in bytes (32 MiB); a picture of the largest size is a tenth of it.
pub const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    artifacts: Vec<Artifact<'a>>,
}

#[derive(Deserialize)]
struct Artifact<'a> {
    /// Borrowed from the body, where it is not escaped: a picture of megabytes is not copied to be decoded.
    #[serde(borrow, default)]
    base64: Option<Cow<'a, str>>,
    #[serde(default)]
    seed: u32,
    #[serde(borrow, rename = "finishReason", default)]
    finish_reason: Option<Cow<'a, str>>,
}

/// One picture as the API sent it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    pub(crate) image: Bytes,
    pub(crate) seed: u32,
}

/// Decodes the JSON answer of v1 text-to-image. A missing finish reason counts as success, as the API's own clients have it.
pub(crate) fn decode(body: &[u8]) -> Result<Picture, Error> {
    let parsed: Body = serde_json::from_slice(body)
        .map_err(|error| Error::Undecodable(format!("{} bytes that are not the API's JSON ({error})", body.len())))?;
    let artifact = parsed.artifacts.first().ok_or_else(|| Error::Undecodable("no artifacts".to_owned()))?;
    match artifact.finish_reason.as_deref().unwrap_or("SUCCESS") {
        "SUCCESS" => {}
        "CONTENT_FILTERED" => return Err(Error::Filtered),
        "ERROR" => return Err(Error::Unfinished),
        other => return Err(Error::Undecodable(format!("unknown finish reason {other:.40}"))),
    }
    let image = STANDARD
        .decode(artifact.base64.as_deref().unwrap_or_default())
        .map_err(|error| Error::Undecodable(format!("the picture is not base64 ({error})")))?;
    if image.is_empty() {
        return Err(Error::Undecodable("the picture is empty".to_owned()));
    }
    Ok(Picture { image: image.into(), seed: artifact.seed })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_finished_picture_is_a_picture() {
        let check = |body: &str, expected: &str| {
            let found = match decode(body.as_bytes()) {
                Ok(picture) => format!("{} bytes, seed {}", picture.image.len(), picture.seed),
                Err(error) => error.kind().to_owned(),
            };
            assert_eq!(found, expected, "{body}");
        };
        check(r#"{"artifacts":[{"base64":"aGVsbG8=","seed":7,"finishReason":"SUCCESS"}]}"#, "5 bytes, seed 7");
        check(r#"{"artifacts":[{"base64":"aGVsbG8="}]}"#, "5 bytes, seed 0");
        check(r#"{"artifacts":[{"base64":"aGVsbG8=","seed":7,"finishReason":"CONTENT_FILTERED"}]}"#, "filtered");
        check(r#"{"artifacts":[{"base64":"aGVsbG8=","seed":7,"finishReason":"ERROR"}]}"#, "unfinished");
        check(r#"{"artifacts":[{"base64":"aGVsbG8=","seed":7,"finishReason":"MAYBE"}]}"#, "undecodable");
        check(r#"{"artifacts":[{"base64":"not base64!"}]}"#, "undecodable");
        check(r#"{"artifacts":[{"base64":""}]}"#, "undecodable");
        check(r#"{"artifacts":[{"base64":null,"finishReason":"CONTENT_FILTERED"}]}"#, "filtered");
        check(r#"{"artifacts":[{"base64":"aGVsbG8\u003d","seed":7}]}"#, "5 bytes, seed 7");
        check(r#"{"artifacts":[]}"#, "undecodable");
        check(r#"{"artifacts":[{"base64":"aGVsbG"#, "undecodable");
        check("{}", "undecodable");
        check("<html>hello</html>", "undecodable");
        check("", "undecodable");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..1_000)) {
            let _ = decode(&body);
        }
    }
}
