//! Validates requests to the fast upscaler of v2beta.
//!
//! Source: the public v2beta reference; the order of the checks is the sandbox's own.

use std::io::Cursor;
use std::ops::RangeInclusive;

use image::{ImageFormat, ImageReader, RgbImage};

use super::Format;
use crate::api_error::ApiError;
use crate::paint;

const SIDES: RangeInclusive<u32> = 32..=1_536;
const MAX_PIXELS: u32 = 1_048_576;
/// Price of one request, in credits.
pub(crate) const CREDITS: f64 = 2.0;

/// A valid request to make an image four times as wide and as high.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UpscaleRequest {
    pub(crate) picture: RgbImage,
    pub(crate) format: Format,
    /// The prompt of the image if the sandbox painted it, otherwise empty. For fault markers and the ledger only.
    pub(crate) prompt: String,
}

/// Validates the form fields of a request. Decodes the image, which takes CPU time.
pub(crate) fn parse(fields: &[(String, Vec<u8>)]) -> Result<UpscaleRequest, ApiError> {
    let bad_request = |message: String| ApiError::new(400, "bad_request", message);
    if let Some((unknown, _)) = fields.iter().find(|(name, _)| !matches!(name.as_str(), "image" | "output_format")) {
        return Err(bad_request(format!("{unknown}: unknown field")));
    }
    let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice());
    let format = match field("output_format") {
        None | Some(b"png") => Format::Png,
        Some(b"jpeg") => Format::Jpeg,
        Some(b"webp") => Format::Webp,
        Some(_) => return Err(bad_request("output_format: must be one of png, jpeg, webp".to_owned())),
    };
    let file = field("image").ok_or_else(|| bad_request("image: is required".to_owned()))?;
    let reader = ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(|_| ApiError::from_status(500))?;
    if !matches!(reader.format(), Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) {
        return Err(bad_request("image: must be a png, jpeg or webp file".to_owned()));
    }
    let damaged = |_| bad_request("image: cannot be decoded".to_owned());
    let (width, height) = reader.into_dimensions().map_err(damaged)?;
    if !SIDES.contains(&width) || !SIDES.contains(&height) {
        return Err(bad_request("image: sides must be 32 to 1536 pixels".to_owned()));
    }
    if width * height > MAX_PIXELS {
        return Err(bad_request(format!("image: must have at most {MAX_PIXELS} pixels")));
    }
    let picture = image::load_from_memory(file).map_err(damaged)?.into_rgb8();
    Ok(UpscaleRequest { picture, format, prompt: paint::read_prompt(file).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        paint::render_sketch("A fox", 1, width, height)
    }

    fn parse_with(fields: &[(&str, &[u8])]) -> Result<UpscaleRequest, ApiError> {
        parse(&fields.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect::<Vec<_>>())
    }

    #[test]
    fn valid_form_is_parsed() {
        let request = parse_with(&[("image", &png(1_344, 768)), ("output_format", b"jpeg")]).expect("a valid request");
        assert_eq!((request.picture.dimensions(), request.format), ((1_344, 768), Format::Jpeg));
        assert_eq!(request.prompt, "A fox");
        assert!(parse_with(&[("image", &png(32, 32))]).is_ok_and(|request| request.format == Format::Png));
        assert!(parse_with(&[("image", &png(1_024, 1_024))]).is_ok());
    }

    #[test]
    fn each_violation_is_a_bad_request() {
        let good = png(64, 64);
        let check = |fields: &[(&str, &[u8])], expected: &str| {
            let error = parse_with(fields).expect_err(expected);
            assert_eq!((error.status, error.name, error.message.as_str()), (400, "bad_request", expected));
        };
        check(&[], "image: is required");
        check(&[("image", b"text")], "image: must be a png, jpeg or webp file");
        check(&[("image", &good[..good.len() / 2])], "image: cannot be decoded");
        check(&[("image", &png(31, 64))], "image: sides must be 32 to 1536 pixels");
        check(&[("image", &png(64, 1_537))], "image: sides must be 32 to 1536 pixels");
        check(&[("image", &png(1_025, 1_024))], "image: must have at most 1048576 pixels");
        check(&[("image", &good), ("output_format", b"gif")], "output_format: must be one of png, jpeg, webp");
        check(&[("image", &good), ("prompt", b"A fox")], "prompt: unknown field");
    }
}
