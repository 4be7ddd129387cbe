//! Writes image metadata into files and reads it back.
//!
//! - PNG: text chunks with the keywords `parameters` (which image tools read), `Title`, `Description`, `Software`, and
//!   the complete metadata as JSON under `asset-worker`.
//! - JPEG: the same texts in the EXIF fields `UserComment`, `DocumentName`, `ImageDescription`, `Software`, and the
//!   JSON in `MakerNote`.

use std::io::Cursor;

use domain::image_metadata::ImageMetadata;
use domain::image_spec::{ImageDefect, ImageFormat};
use exif::experimental::Writer;
use exif::{Field, In, Tag, Value};
use image::ImageDecoder;
use image::codecs::jpeg::JpegDecoder;

use super::decode;

/// Name and version of this program, as written into files.
pub const SOFTWARE: &str = concat!("asset-worker ", env!("CARGO_PKG_VERSION"));
/// The keyword of the metadata as JSON.
pub const METADATA_KEYWORD: &str = "asset-worker";
/// The keyword that image tools read.
pub const PARAMETERS_KEYWORD: &str = "parameters";
const TITLE_KEYWORD: &str = "Title";
const DESCRIPTION_KEYWORD: &str = "Description";
const SOFTWARE_KEYWORD: &str = "Software";

/// The EXIF tag for each PNG keyword.
const EXIF_TAGS: [(&str, Tag); 5] = [
    (PARAMETERS_KEYWORD, Tag::UserComment),
    (TITLE_KEYWORD, Tag(exif::Context::Tiff, 0x010d)),
    (DESCRIPTION_KEYWORD, Tag::ImageDescription),
    (SOFTWARE_KEYWORD, Tag::Software),
    (METADATA_KEYWORD, Tag::MakerNote),
];

/// Prefix of a `UserComment` that marks its text as UTF-16. Source: EXIF 2.32, 4.6.5.
const UNICODE_PREFIX: &[u8; 8] = b"UNICODE\0";

/// The longest text that is decompressed, in bytes. This program writes its texts uncompressed.
const MAX_TEXT_BYTES: usize = 256 * 1024;
/// The most compressed texts that are read from one file.
const MAX_COMPRESSED_TEXTS: usize = 16;

/// The most bytes of EXIF data: one JPEG segment without its header.
const MAX_EXIF_BYTES: usize = 65_000;

/// The metadata as keywords and texts.
pub(super) fn to_texts(metadata: &ImageMetadata) -> [(&'static str, String); 5] {
    [
        (PARAMETERS_KEYWORD, metadata.parameters_text()),
        (TITLE_KEYWORD, metadata.title()),
        (DESCRIPTION_KEYWORD, metadata.description.clone()),
        (SOFTWARE_KEYWORD, metadata.software.clone()),
        (METADATA_KEYWORD, serde_json::to_string(metadata).expect("image metadata is serialisable")),
    ]
}

/// The metadata as EXIF. If it exceeds one JPEG segment, the longest texts are left out.
pub(super) fn to_exif(metadata: &ImageMetadata) -> Vec<u8> {
    let mut fields: Vec<(usize, Field)> = to_texts(metadata)
        .into_iter()
        .filter_map(|(keyword, text)| {
            let (_, tag) = EXIF_TAGS.into_iter().find(|(known, _)| *known == keyword)?;
            Some((text.len(), Field { tag, ifd_num: In::PRIMARY, value: exif_value(tag, &text) }))
        })
        .collect();
    fields.sort_by_key(|(length, _)| *length);
    loop {
        let mut writer = Writer::new();
        for (_, field) in &fields {
            writer.push_field(field);
        }
        let mut file = Cursor::new(Vec::new());
        // Big-endian, because programs that read a Unicode `UserComment` expect it.
        let written = writer.write(&mut file, false);
        let file = file.into_inner();
        if written.is_ok() && file.len() <= MAX_EXIF_BYTES {
            return file;
        }
        if fields.pop().is_none() {
            return Vec::new();
        }
    }
}

fn exif_value(tag: Tag, text: &str) -> Value {
    match tag {
        Tag::UserComment => {
            let utf16 = text.encode_utf16().flat_map(u16::to_be_bytes);
            Value::Undefined(UNICODE_PREFIX.iter().copied().chain(utf16).collect(), 0)
        }
        Tag::MakerNote => Value::Undefined(text.as_bytes().to_vec(), 0),
        // The EXIF type is ASCII, but programs commonly write UTF-8.
        _ => Value::Ascii(vec![text.replace('\0', " ").into_bytes()]),
    }
}

/// Format, size and texts of an image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Format of the file.
    pub format: ImageFormat,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Keywords and texts, in the order of reading.
    pub texts: Vec<(String, String)>,
}

/// Reads format, size and texts of an image file of any origin.
///
/// # Errors
///
/// [`ImageDefect`] if it is not a readable PNG or JPEG.
pub fn read(bytes: &[u8]) -> Result<ImageInfo, ImageDefect> {
    match decode::open_reader(bytes)?.format() {
        Some(image::ImageFormat::Png) => read_png(bytes).map_err(|error| ImageDefect::from_codec_error(&error)),
        _ => read_jpeg(bytes).map_err(|error| ImageDefect::from_codec_error(&error)),
    }
}

fn read_png(bytes: &[u8]) -> Result<ImageInfo, png::DecodingError> {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
    // Text chunks may also follow the pixel data.
    reader.finish()?;
    let info = reader.info();
    Ok(ImageInfo { format: ImageFormat::Png, width: info.width, height: info.height, texts: png_texts(info) })
}

fn read_jpeg(bytes: &[u8]) -> Result<ImageInfo, image::ImageError> {
    let mut decoder = JpegDecoder::new(Cursor::new(bytes))?;
    let texts = decoder.exif_metadata()?.map(exif_texts).unwrap_or_default();
    let (width, height) = decoder.dimensions();
    Ok(ImageInfo { format: ImageFormat::Jpeg, width, height, texts })
}

/// Parses this program's metadata from the texts of a file; `None` if there is none.
pub fn from_texts(texts: &[(String, String)]) -> Option<ImageMetadata> {
    let (_, json) = texts.iter().find(|(keyword, _)| keyword == METADATA_KEYWORD)?;
    serde_json::from_str(json).ok()
}

/// The texts of a PNG. Compressed ones that are too long, and those after the first 16, are left out.
fn png_texts(info: &png::Info<'_>) -> Vec<(String, String)> {
    let utf8 = info.utf8_text.iter().filter(|chunk| !chunk.compressed);
    let utf8 = utf8.filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    let latin1 = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    // A few hundred bytes can become gigabytes: the length is bounded while they are decompressed.
    let compressed_utf8 = info.utf8_text.iter().filter(|chunk| chunk.compressed).map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        Some((chunk.keyword.clone(), chunk.get_text().ok()?))
    });
    let compressed_latin1 = info.compressed_latin1_text.iter().map(|chunk| {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(MAX_TEXT_BYTES).ok()?;
        Some((chunk.keyword.clone(), chunk.get_text().ok()?))
    });
    let compressed = compressed_utf8.chain(compressed_latin1).take(MAX_COMPRESSED_TEXTS).flatten();
    utf8.chain(latin1).chain(compressed).collect()
}

/// The texts of the EXIF tags in `EXIF_TAGS`, by keyword; empty if the EXIF data is unreadable.
fn exif_texts(bytes: Vec<u8>) -> Vec<(String, String)> {
    let Ok(exif) = exif::Reader::new().read_raw(bytes) else { return Vec::new() };
    let text = |(keyword, tag): (&str, Tag)| {
        let field = exif.get_field(tag, In::PRIMARY)?;
        let text = match &field.value {
            Value::Undefined(bytes, _) => match bytes.strip_prefix(UNICODE_PREFIX) {
                Some(utf16) => {
                    let units = utf16.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
                }
                None => String::from_utf8_lossy(bytes).into_owned(),
            },
            Value::Ascii(texts) => {
                texts.iter().map(|text| String::from_utf8_lossy(text)).collect::<Vec<_>>().join("\n")
            }
            _ => return None,
        };
        Some((keyword.to_owned(), text))
    };
    EXIF_TAGS.into_iter().filter_map(text).collect()
}
