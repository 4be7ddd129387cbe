//! Renders images, and applies faults to their bytes and to the response.

use std::io::Cursor;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage, imageops};

use crate::faults::Fault;
use crate::paint;
use crate::rules::upscale::UpscaleRequest;
use crate::rules::{Format, ImageRequest};

/// Quality of JPEG files, 1 to 100.
const JPEG_QUALITY: u8 = 92;
/// Standard deviation of the blur of filtered images that were upscaled, in pixels.
const BLUR_SIGMA: f32 = 96.0;

/// Renders and encodes the requested image, altered by the fault.
pub(super) fn render_image(order: &ImageRequest, seed: u32, fault: Option<Fault>, sketch: bool) -> Vec<u8> {
    let bytes = match fault {
        Some(Fault::Filtered | Fault::Blurred) => paint::render_blurred(&order.prompt, seed, order.width, order.height),
        Some(Fault::WrongSize) => paint::render_scene(&order.prompt, seed, 512, 512),
        // Except for `Blank`, these faults replace the whole body: the cheapest image will do.
        Some(Fault::Blank | Fault::Html | Fault::Empty | Fault::Oversized | Fault::Drop) => {
            paint::render_blank(order.width, order.height)
        }
        Some(Fault::Bomb) => decompression_bomb(),
        Some(Fault::Corrupt) => {
            let mut bytes = paint::render_scene(&order.prompt, seed, order.width, order.height);
            let middle = bytes.len() / 2;
            bytes.truncate(middle);
            bytes
        }
        _ if sketch => paint::render_sketch(&order.prompt, seed, order.width, order.height),
        _ => paint::render_scene(&order.prompt, seed, order.width, order.height),
    };
    if is_decodable(fault) { convert_png(bytes, order.format) } else { bytes }
}

/// Makes an image four times as wide and as high, altered by the fault.
pub(super) fn render_upscaled(order: &UpscaleRequest, fault: Option<Fault>) -> Vec<u8> {
    let UpscaleRequest { picture, format, prompt } = order;
    let (width, height) = (picture.width() * 4, picture.height() * 4);
    match fault {
        Some(Fault::Bomb) => return decompression_bomb(),
        Some(Fault::WrongSize) => return convert_png(paint::render_scene(prompt, 0, 512, 512), *format),
        Some(Fault::Blank | Fault::Html | Fault::Empty | Fault::Oversized | Fault::Drop) => {
            return convert_png(paint::render_blank(width, height), *format);
        }
        _ => {}
    }
    let mut upscaled = enlarge(picture, width, height);
    if matches!(fault, Some(Fault::Filtered | Fault::Blurred)) {
        upscaled = imageops::fast_blur(&upscaled, BLUR_SIGMA);
    }
    let mut file = encode(&upscaled, *format);
    if fault == Some(Fault::Corrupt) {
        file.truncate(file.len() / 2);
    }
    file
}

/// Interpolates a larger image. The real upscaler also adds detail.
fn enlarge(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let source = TypedImageRef::<U8x3>::from_buffer(picture.width(), picture.height(), picture.as_raw());
    let mut enlarged = RgbImage::new(width, height);
    let mut target =
        TypedImage::<U8x3>::from_buffer(width, height, &mut enlarged).expect("the buffer has the size of the image");
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let source = source.expect("the buffer has the size of the image");
    Resizer::new().resize_typed(&source, &mut target, &options).expect("an image is enlarged");
    enlarged
}

fn is_decodable(fault: Option<Fault>) -> bool {
    !matches!(fault, Some(Fault::Bomb | Fault::Corrupt))
}

/// Converts a PNG to the requested format.
fn convert_png(painted: Vec<u8>, format: Format) -> Vec<u8> {
    if format == Format::Png {
        return painted;
    }
    encode(&image::load_from_memory(&painted).expect("a PNG made by the sandbox").into_rgb8(), format)
}

fn encode(picture: &RgbImage, format: Format) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let written = match format {
        Format::Png => picture.write_to(&mut file, ImageFormat::Png),
        Format::Jpeg => JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY).encode_image(picture),
        Format::Webp => picture.write_to(&mut file, ImageFormat::WebP),
    };
    written.expect("writing to memory");
    file.into_inner()
}

/// A PNG whose header declares 30000x30000 pixels.
fn decompression_bomb() -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, 30_000, 30_000);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let writer = encoder.write_header().expect("writing to memory");
    drop(writer);
    file
}

/// Replaces or truncates a successful response as the fault demands.
pub(super) async fn apply_response_fault(response: Response, fault: Option<Fault>) -> Response {
    match fault {
        Some(Fault::Oversized) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], vec![b' '; 65 * 1024 * 1024]).into_response()
        }
        Some(Fault::Html) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "text/html")], "<html><body>please wait</body></html>")
                .into_response()
        }
        Some(Fault::Empty) => StatusCode::OK.into_response(),
        Some(Fault::Truncated) => {
            let (parts, body) = response.into_parts();
            let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            Response::from_parts(parts, Body::from(bytes.slice(..bytes.len() / 2)))
        }
        Some(Fault::Drop) => Response::new(Body::from_stream(aborted_body())),
        _ => response,
    }
}

/// A body that fails after its first bytes, which closes the connection.
fn aborted_body() -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> {
    futures_util::stream::iter([
        Ok(Bytes::from_static(b"{\"artifacts\": [{\"base64\": \"iVBORw0KGgo")),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ])
}
