//! The texts in a file beside its pixels: a picture carries its story.
//!
//! PNG: text chunks under `parameters` (which image tools read), `Title`, `Description`, `Software`, and the whole story as JSON under
//! `asset-worker`. JPEG: the same in EXIF: `UserComment`, `DocumentName`, `ImageDescription`, `Software`, and the JSON in `MakerNote`.

use std::io::Cursor;

use domain::image_spec::{ImageDefect, ImageFormat};
use domain::story::Story;
use exif::experimental::Writer;
use exif::{Field, In, Tag, Value};
use image::ImageDecoder;
use image::codecs::jpeg::JpegDecoder;

use super::decode;

/// What the program calls itself in files.
pub const SOFTWARE: &str = concat!("asset-worker ", env!("CARGO_PKG_VERSION"));
/// The keyword of the story as JSON.
pub const STORY: &str = "asset-worker";
/// The keyword that image tools look for.
pub const PARAMETERS: &str = "parameters";
const TITLE: &str = "Title";
const DESCRIPTION: &str = "Description";
const SOFTWARE_KEYWORD: &str = "Software";

/// Where EXIF has what PNG has under a keyword.
const EXIF_TAGS: [(&str, Tag); 5] = [
    (PARAMETERS, Tag::UserComment),
    (TITLE, Tag(exif::Context::Tiff, 0x010d)),
    (DESCRIPTION, Tag::ImageDescription),
    (SOFTWARE_KEYWORD, Tag::Software),
    (STORY, Tag::MakerNote),
];

/// Eight bytes before the text of a `UserComment` say that it is UTF-16. Source: EXIF 2.32, 4.6.5.
const UNICODE: &[u8; 8] = b"UNICODE\0";

/// What one segment of a JPEG holds, less its own header.
const MAX_EXIF_BYTES: usize = 65_000;

/// The keywords and texts of a story.
pub(super) fn of_png(story: &Story) -> [(&'static str, String); 5] {
    [
        (PARAMETERS, story.parameters()),
        (TITLE, story.title()),
        (DESCRIPTION, story.description.clone()),
        (SOFTWARE_KEYWORD, story.software.clone()),
        (STORY, serde_json::to_string(story).expect("a story serialises")),
    ]
}

/// A story as EXIF. Where it is longer than a JPEG can carry, its longest texts are left out.
pub(super) fn exif(story: &Story) -> Vec<u8> {
    let mut fields: Vec<(usize, Field)> = of_png(story)
        .into_iter()
        .filter_map(|(keyword, text)| {
            let (_, tag) = EXIF_TAGS.into_iter().find(|(known, _)| *known == keyword)?;
            Some((text.len(), Field { tag, ifd_num: In::PRIMARY, value: value(tag, &text) }))
        })
        .collect();
    fields.sort_by_key(|(length, _)| *length);
    loop {
        let mut writer = Writer::new();
        for (_, field) in &fields {
            writer.push_field(field);
        }
        let mut file = Cursor::new(Vec::new());
        // Big-endian, as those who read a Unicode comment expect it.
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

fn value(tag: Tag, text: &str) -> Value {
    match tag {
        Tag::UserComment => {
            let utf16 = text.encode_utf16().flat_map(u16::to_be_bytes);
            Value::Undefined(UNICODE.iter().copied().chain(utf16).collect(), 0)
        }
        Tag::MakerNote => Value::Undefined(text.as_bytes().to_vec(), 0),
        // In fact UTF-8, as everybody writes it.
        _ => Value::Ascii(vec![text.replace('\0', " ").into_bytes()]),
    }
}

/// What stands in a file besides its pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// How it is encoded.
    pub format: ImageFormat,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Keywords and texts, in their order.
    pub texts: Vec<(String, String)>,
}

/// Reads the texts in a file of any origin.
///
/// # Errors
///
/// [`ImageDefect`] where it is no PNG or JPEG that can be read.
pub fn read(bytes: &[u8]) -> Result<Read, ImageDefect> {
    match decode::reader(bytes)?.format() {
        Some(image::ImageFormat::Png) => read_png(bytes).map_err(|error| ImageDefect::undecodable(&error)),
        _ => read_jpeg(bytes).map_err(|error| ImageDefect::undecodable(&error)),
    }
}

fn read_png(bytes: &[u8]) -> Result<Read, png::DecodingError> {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info()?;
    // Texts may also stand behind the pixels.
    reader.finish()?;
    let info = reader.info();
    Ok(Read { format: ImageFormat::Png, width: info.width, height: info.height, texts: png_texts(info) })
}

fn read_jpeg(bytes: &[u8]) -> Result<Read, image::ImageError> {
    let mut decoder = JpegDecoder::new(Cursor::new(bytes))?;
    let texts = decoder.exif_metadata()?.map(exif_texts).unwrap_or_default();
    let (width, height) = decoder.dimensions();
    Ok(Read { format: ImageFormat::Jpeg, width, height, texts })
}

/// The story in a file, where it has one of ours.
pub fn story(texts: &[(String, String)]) -> Option<Story> {
    let (_, json) = texts.iter().find(|(keyword, _)| keyword == STORY)?;
    serde_json::from_str(json).ok()
}

fn png_texts(info: &png::Info<'_>) -> Vec<(String, String)> {
    let utf8 = info.utf8_text.iter().filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    let latin1 = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let packed =
        info.compressed_latin1_text.iter().filter_map(|chunk| Some((chunk.keyword.clone(), chunk.get_text().ok()?)));
    utf8.chain(latin1).chain(packed).collect()
}

/// What stands in EXIF under our keywords; an EXIF that cannot be read says nothing.
fn exif_texts(bytes: Vec<u8>) -> Vec<(String, String)> {
    let Ok(exif) = exif::Reader::new().read_raw(bytes) else { return Vec::new() };
    let text = |(keyword, tag): (&str, Tag)| {
        let field = exif.get_field(tag, In::PRIMARY)?;
        let text = match &field.value {
            Value::Undefined(bytes, _) => match bytes.strip_prefix(UNICODE) {
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
