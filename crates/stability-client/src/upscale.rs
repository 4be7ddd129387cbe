//! Requests to the fast upscaler. Every limit is checked when the request is built.

use std::fmt;
use std::ops::RangeInclusive;

use bytes::Bytes;
use imagesize::{ImageSize, ImageType};

use crate::credits::Credits;
use crate::engine::ApiVersion;
use crate::error::InvalidRequest;
use crate::operation::Operation;
use crate::options::{OutputFormat, ResponseFormat};
use crate::request::ApiRequest;
use crate::wire::{FormValue, HttpBody, HttpRequest};

/// A request to Stability's fast upscaler: an image four times as wide and as high, in about a second.
///
/// Source of the limits and of the price: the public v2beta reference and pricing page.
///
/// ```
/// use stability_client::FastUpscale;
///
/// let refused = FastUpscale::new("not an image").expect_err("text is no image");
/// assert_eq!(refused.to_string(), "image: a file of 12 bytes is not allowed; a PNG, JPEG or WebP file");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct FastUpscale {
    image: Bytes,
    media_type: &'static str,
    output_format: OutputFormat,
}

impl fmt::Debug for FastUpscale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, media_type, output_format } = self;
        f.debug_struct("FastUpscale")
            .field("image", &format_args!("{} bytes of {media_type}", image.len()))
            .field("output_format", output_format)
            .finish()
    }
}

impl FastUpscale {
    /// The range of both sides of the image, in pixels.
    pub const SIDES: RangeInclusive<usize> = 32..=1_536;
    /// The largest number of pixels of the image. 1344x768 is below it; the images of [`Engine::Core`] are not.
    ///
    /// [`Engine::Core`]: crate::Engine::Core
    pub const MAX_PIXELS: usize = 1_048_576;
    /// How many times wider and higher the result is.
    pub const FACTOR: u32 = 4;
    /// The price of one request.
    pub const PRICE: Credits = Credits::from_tenths(20);

    /// Creates a request for an image file: PNG, JPEG or WebP. Only its header is read.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the file is of another type, or its size is outside the limits.
    pub fn new(image: impl Into<Bytes>) -> Result<Self, InvalidRequest> {
        let image = image.into();
        let invalid = |value: String, allowed: String| InvalidRequest::new("image", value, allowed);
        let media_type = match imagesize::image_type(&image) {
            Ok(ImageType::Png) => "image/png",
            Ok(ImageType::Jpeg) => "image/jpeg",
            Ok(ImageType::Webp) => "image/webp",
            _ => {
                return Err(invalid(format!("a file of {} bytes", image.len()), "a PNG, JPEG or WebP file".to_owned()));
            }
        };
        let ImageSize { width, height } = imagesize::blob_size(&image).map_err(|_| {
            invalid(format!("a file of {} bytes", image.len()), "a file with a complete header".to_owned())
        })?;
        let value = || format!("{width}x{height} pixels");
        if !Self::SIDES.contains(&width) || !Self::SIDES.contains(&height) {
            let (start, end) = (Self::SIDES.start(), Self::SIDES.end());
            return Err(invalid(value(), format!("sides of {start} to {end} pixels")));
        }
        if width * height > Self::MAX_PIXELS {
            return Err(invalid(value(), format!("at most {} pixels in all", Self::MAX_PIXELS)));
        }
        Ok(Self { image, media_type, output_format: OutputFormat::Jpeg })
    }

    /// Sets the file format of the result. Default: JPEG. A PNG of 5376x3072 pixels, four times 1344x768, has 15 to 50
    /// MB.
    #[must_use]
    pub fn output_format(mut self, format: OutputFormat) -> Self {
        self.output_format = format;
        self
    }

    pub(crate) fn to_api_request(&self, format: ResponseFormat) -> ApiRequest<'_> {
        let fields = vec![
            ("image", FormValue::File { bytes: self.image.clone(), media_type: self.media_type }),
            ("output_format", FormValue::Text(self.output_format.as_str().to_owned())),
        ];
        let accept = match format {
            ResponseFormat::Image => "image/*",
            ResponseFormat::Json => "application/json",
        };
        let path = "v2beta/stable-image/upscale/fast".to_owned();
        ApiRequest {
            operation: Operation::Upscale,
            model: "fast",
            api_version: ApiVersion::V2Beta,
            images: 1,
            seed: None,
            // The same image is upscaled to the same result.
            repeats_result: true,
            prompt: None,
            http: HttpRequest { path, body: HttpBody::Form(fields), accept, resend_count: 0 },
        }
    }
}
