//! What a good status carries.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::engine::Family;
use crate::error::Error;
use crate::wire::HttpResponse;

/// How many characters of an unknown finish reason are repeated.
const SHOWN_CHARS: usize = 40;

/// One picture as the API sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The encoded picture: whole, and not looked at further.
    pub image: Bytes,
    /// The seed that was used.
    pub seed: u32,
}

/// What an answer held: at least one picture.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pictures {
    pub(crate) pictures: Vec<Picture>,
    /// Those that were filtered, or not finished.
    pub(crate) withheld: u32,
}

#[derive(Deserialize)]
struct V1Body<'a> {
    #[serde(borrow)]
    artifacts: Vec<V1Artifact<'a>>,
}

#[derive(Deserialize)]
struct V1Artifact<'a> {
    /// Borrowed from the body, where it is not escaped: a picture of megabytes is not copied to be decoded.
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

/// Reads the pictures of a good answer, in whichever form it came.
///
/// # Errors
///
/// [`Error::Filtered`], [`Error::Unfinished`] where there is no picture for that reason, and [`Error::Undecodable`].
pub(crate) fn decode(family: Family, response: &HttpResponse) -> Result<Pictures, Error> {
    if response.content_type.as_deref().is_some_and(|kind| kind.starts_with("image/")) {
        let reason = response.finish_reason.as_deref();
        return one_of([
            finished(reason).and_then(|()| picture(response.body.clone(), response.seed.unwrap_or_default()))
        ]);
    }
    let body = &response.body;
    let unreadable = |error| Error::Undecodable(format!("{} bytes that are not the API's JSON ({error})", body.len()));
    match family {
        Family::V1 => {
            let body: V1Body = serde_json::from_slice(body).map_err(unreadable)?;
            one_of(body.artifacts.iter().map(|artifact| {
                finished(artifact.finish_reason.as_deref())?;
                picture(unpacked(artifact.base64.as_deref())?, artifact.seed)
            }))
        }
        Family::V2Beta => {
            let body: V2Body = serde_json::from_slice(body).map_err(unreadable)?;
            one_of([finished(body.finish_reason.as_deref())
                .and_then(|()| picture(unpacked(body.image.as_deref())?, body.seed))])
        }
    }
}

/// The good ones; where there is none, what was wrong with the first.
fn one_of(found: impl IntoIterator<Item = Result<Picture, Error>>) -> Result<Pictures, Error> {
    let mut pictures = Pictures { pictures: Vec::new(), withheld: 0 };
    let mut first = None;
    for picture in found {
        match picture {
            Ok(picture) => pictures.pictures.push(picture),
            Err(error @ (Error::Filtered | Error::Unfinished)) => {
                pictures.withheld += 1;
                first.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match first {
        _ if !pictures.pictures.is_empty() => Ok(pictures),
        Some(error) => Err(error),
        None => Err(Error::Undecodable("it holds no pictures".to_owned())),
    }
}

/// What the API says of a picture. A missing finish reason counts as success, as the API's own clients have it.
fn finished(reason: Option<&str>) -> Result<(), Error> {
    match reason.unwrap_or("SUCCESS") {
        "SUCCESS" => Ok(()),
        "CONTENT_FILTERED" => Err(Error::Filtered),
        "ERROR" => Err(Error::Unfinished),
        other => {
            let shown: String = other.chars().take(SHOWN_CHARS).collect();
            Err(Error::Undecodable(format!("unknown finish reason {shown:?}")))
        }
    }
}

fn unpacked(base64: Option<&str>) -> Result<Bytes, Error> {
    let unpacked = STANDARD.decode(base64.unwrap_or_default());
    unpacked.map(Bytes::from).map_err(|error| Error::Undecodable(format!("the picture is not base64 ({error})")))
}

fn picture(image: Bytes, seed: u32) -> Result<Picture, Error> {
    if image.is_empty() {
        return Err(Error::Undecodable("the picture is empty".to_owned()));
    }
    if !is_whole(&image) {
        return Err(Error::Damaged { size_bytes: image.len() });
    }
    Ok(Picture { image, seed })
}

/// Whether a file begins and ends as a PNG, a JPEG or a WebP does. A body that was cut off on its way by somebody who set its length
/// anew looks good to HTTP.
fn is_whole(image: &[u8]) -> bool {
    const PNG: (&[u8], &[u8]) = (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xAE\x42\x60\x82");
    const JPEG: (&[u8], &[u8]) = (b"\xFF\xD8\xFF", b"\xFF\xD9");
    let between = |(head, tail): (&[u8], &[u8])| image.starts_with(head) && image.ends_with(tail);
    between(PNG) || between(JPEG) || is_whole_webp(image)
}

/// A RIFF container says how long it is, without its first eight bytes.
fn is_whole_webp(image: &[u8]) -> bool {
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
