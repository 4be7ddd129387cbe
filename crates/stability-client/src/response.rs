//! Decoding of 200 responses.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::engine::ApiVersion;
use crate::error::Error;
use crate::wire::HttpResponse;

/// Maximum number of characters of an unknown finish reason in an error text.
const MAX_REASON_CHARS: usize = 40;

/// One image as the API sent it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GeneratedImage {
    /// The encoded file. Its start and end markers were checked, so it is not truncated; it was not decoded.
    pub bytes: Bytes,
    /// The seed that the API used; 0 if the response names none.
    pub seed: u32,
}

impl GeneratedImage {
    /// An image, for tests of a function that takes one.
    pub fn new(bytes: impl Into<Bytes>, seed: u32) -> Self {
        Self { bytes: bytes.into(), seed }
    }
}

impl fmt::Debug for GeneratedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, seed } = self;
        f.debug_struct("GeneratedImage")
            .field("bytes", &format_args!("{} bytes", bytes.len()))
            .field("seed", seed)
            .finish()
    }
}

/// The images of one response: at least one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DecodedImages {
    pub(crate) images: Vec<GeneratedImage>,
    /// Number of images that were filtered, not finished or damaged.
    pub(crate) withheld: u32,
}

#[derive(Deserialize)]
struct V1Body<'a> {
    #[serde(borrow)]
    artifacts: Vec<V1Artifact<'a>>,
}

#[derive(Deserialize)]
struct V1Artifact<'a> {
    /// Borrowed from the body unless it contains escapes, so that an image of several megabytes is not copied before it
    /// is decoded.
    #[serde(borrow, default)]
    base64: Option<Cow<'a, str>>,
    #[serde(default)]
    seed: u32,
    #[serde(borrow, rename = "finishReason", default)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct V2Body<'a> {
    #[serde(borrow, default)]
    image: Option<Cow<'a, str>>,
    #[serde(default)]
    seed: u32,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

/// Decodes the images of a 200 response, sent either as an image file or as JSON.
///
/// # Errors
///
/// - [`Error::Filtered`], [`Error::Unfinished`] or [`Error::Damaged`] (truncated, or not a PNG, JPEG or WebP file) if
///   no image can be used and this is the first one's failure.
/// - [`Error::Undecodable`] if the body is not the expected JSON or contains no images, or likewise if the first one is
///   missing, empty or not base64.
pub(crate) fn decode(api_version: ApiVersion, response: &HttpResponse) -> Result<DecodedImages, Error> {
    if response.content_type.as_deref().is_some_and(|kind| kind.starts_with("image/")) {
        let reason = response.finish_reason.as_deref();
        return collect_images([check_finish_reason(reason)
            .and_then(|()| validate_image(response.body.clone(), response.seed.unwrap_or_default()))]);
    }
    let body = &response.body;
    let invalid_json = |error| Error::Undecodable(format!("{} bytes are not the expected JSON ({error})", body.len()));
    match api_version {
        ApiVersion::V1 => {
            let body: V1Body = serde_json::from_slice(body).map_err(invalid_json)?;
            collect_images(body.artifacts.iter().map(|artifact| {
                check_finish_reason(artifact.finish_reason.as_deref())?;
                validate_image(decode_base64(artifact.base64.as_deref())?, artifact.seed)
            }))
        }
        ApiVersion::V2Beta => {
            let body: V2Body = serde_json::from_slice(body).map_err(invalid_json)?;
            collect_images([check_finish_reason(body.finish_reason.as_deref())
                .and_then(|()| validate_image(decode_base64(body.image.as_deref())?, body.seed))])
        }
    }
}

/// Collects the usable images; if there are none, returns the error of the first one.
fn collect_images(found: impl IntoIterator<Item = Result<GeneratedImage, Error>>) -> Result<DecodedImages, Error> {
    let mut decoded = DecodedImages { images: Vec::new(), withheld: 0 };
    let mut first_error = None;
    for image in found {
        match image {
            Ok(image) => decoded.images.push(image),
            Err(error) => {
                decoded.withheld += 1;
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        _ if !decoded.images.is_empty() => Ok(decoded),
        Some(error) => Err(error),
        None => Err(Error::Undecodable("it contains no images".to_owned())),
    }
}

/// Checks the finish reason of an image. A missing one counts as success, as in the API's own clients.
fn check_finish_reason(reason: Option<&str>) -> Result<(), Error> {
    match reason.unwrap_or("SUCCESS") {
        "SUCCESS" => Ok(()),
        "CONTENT_FILTERED" => Err(Error::Filtered),
        "ERROR" => Err(Error::Unfinished),
        other => {
            let shown: String = other.chars().take(MAX_REASON_CHARS).collect();
            Err(Error::Undecodable(format!("unknown finish reason {shown:?}")))
        }
    }
}

fn decode_base64(base64: Option<&str>) -> Result<Bytes, Error> {
    let unpacked = STANDARD.decode(base64.unwrap_or_default());
    unpacked.map(Bytes::from).map_err(|error| Error::Undecodable(format!("the image is not valid base64 ({error})")))
}

fn validate_image(image: Bytes, seed: u32) -> Result<GeneratedImage, Error> {
    if image.is_empty() {
        return Err(Error::Undecodable("the image is empty".to_owned()));
    }
    if !is_complete(&image) {
        return Err(Error::Damaged { size_bytes: image.len() });
    }
    Ok(GeneratedImage { bytes: image, seed })
}

/// Whether a file has the start and end markers of PNG, the segments of a JPEG, or the length that a WebP header
/// states.
///
/// HTTP alone does not show truncation: a proxy that cuts a body off and adjusts its length sends a valid response.
fn is_complete(image: &[u8]) -> bool {
    const PNG: (&[u8], &[u8]) = (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xAE\x42\x60\x82");
    let is_complete_png = image.starts_with(PNG.0) && image.ends_with(PNG.1);
    is_complete_png || is_complete_jpeg(image) || is_complete_webp(image)
}

/// Whether a JPEG's segments lead to pixels that end with the end marker, which is the last one of the file.
///
/// The end marker alone proves nothing: an embedded preview has one too.
fn is_complete_jpeg(image: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    let Some(mut rest) = image.strip_prefix(b"\xFF\xD8") else { return false };
    // A segment: marker, and length of what follows, its own two bytes included.
    while let [0xFF, marker, high, low, ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(next) = rest.get(2 + length..) else { return false };
        if *marker == START_OF_SCAN {
            return next.ends_with(b"\xFF\xD9");
        }
        rest = next;
    }
    false
}

/// A RIFF header states the length of the file without its first eight bytes.
fn is_complete_webp(image: &[u8]) -> bool {
    match image {
        [b'R', b'I', b'F', b'F', a, b, c, d, b'W', b'E', b'B', b'P', ..] => {
            let length = u32::from_le_bytes([*a, *b, *c, *d]);
            u64::from(length) + 8 == image.len() as u64
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
