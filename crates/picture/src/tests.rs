use std::io::Cursor;

use bytes::Bytes;
use domain::command::JobKey;
use domain::digest;
use domain::generation_params::GenerationParams;
use image::{DynamicImage, Rgb, RgbImage};
use uuid::Uuid;

use super::{Buffers, ProcessedImage, QualityCheck, metadata, verify};
use domain::image_metadata::ImageMetadata;
use domain::image_spec::{ImageDefect, ImageFormat, ImageSpec};

/// An image whose colours encode the position of a pixel: red increases to the right, green downwards.
fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let share = |at: u32, of: u32| u8::try_from(at * 255 / of.max(1)).expect("the share is at most 255");
        Rgb([share(x, width), share(y, height), 128])
    })
}

fn encode(picture: &RgbImage, format: image::ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    DynamicImage::from(picture.clone()).write_to(&mut file, format).expect("the image is encoded");
    file.into_inner()
}

fn gradient_png(width: u32, height: u32) -> Vec<u8> {
    encode(&gradient(width, height), image::ImageFormat::Png)
}

fn metadata() -> ImageMetadata {
    let params = GenerationParams {
        english: Some("A fox at dusk".into()),
        prompt: "A fox at dusk, 4k".into(),
        negative_prompt: "blurry".into(),
        engine: "stable-diffusion-xl-1024-v1-0".into(),
        cfg_scale: Some(8.0),
        steps: Some(40),
        ..GenerationParams::default()
    };
    let key = JobKey { job_id: Uuid::from_u128(7), project_id: 42 };
    ImageMetadata::new(key, 3, "黃昏的狐狸", &params, 787_078_103, metadata::SOFTWARE)
}

fn process(sent: &[u8], spec: &ImageSpec) -> Result<ProcessedImage, ImageDefect> {
    super::process(Bytes::copy_from_slice(sent), spec, QualityCheck::default(), &metadata(), &mut Buffers::default())
}

fn decode(bytes: &[u8]) -> RgbImage {
    image::load_from_memory(bytes).expect("the image is decoded").into_rgb8()
}

/// Test 6.
#[test]
fn test_6_verify_checks_resolution_format_size_and_decoding() {
    let spec = ImageSpec::default();
    let good = gradient_png(1920, 1080);
    assert_eq!(verify(&good, &spec), Ok(()));
    assert_eq!(verify(&encode(&gradient(1920, 1080), image::ImageFormat::Jpeg), &spec), Ok(()));
    let refused = |bytes: &[u8], spec: &ImageSpec| verify(bytes, spec).expect_err("the image is rejected").to_string();
    assert_eq!(refused(&gradient_png(1280, 720), &spec), "wrong resolution: 1280x720, expected 1920x1080");
    assert_eq!(refused(b"GIF89a\x01\x00\x01\x00", &spec), "wrong format: expected PNG or JPEG");
    assert_eq!(refused(b"", &spec), "wrong format: expected PNG or JPEG");
    assert!(refused(&good[..good.len() / 2], &spec).starts_with("not a readable image"));
    let small = ImageSpec { max_bytes: good.len() as u64, ..spec };
    assert!(refused(&good, &small).starts_with("file too large"));
}

#[test]
fn image_is_scaled_to_cover_and_cropped_around_centre() {
    let finished = process(&gradient_png(1344, 768), &ImageSpec::default()).expect("the image is processed");
    assert_eq!(finished.format, ImageFormat::Png);
    let picture = decode(&finished.bytes);
    assert_eq!(picture.dimensions(), (1920, 1080));
    // 1344x768 scaled to cover 1920x1080 is 1920x1097: the full width is kept, 6 of 768 rows are cropped at the top and
    // 6 at the bottom.
    let near = |found: u8, wanted: u8| found.abs_diff(wanted) <= 2;
    let [left, top, _] = picture.get_pixel(0, 0).0;
    let [right, bottom, _] = picture.get_pixel(1919, 1079).0;
    let [middle_x, middle_y, _] = picture.get_pixel(960, 540).0;
    assert!(near(left, 0) && near(right, 254), "{left} {right}");
    assert!(near(top, 2) && near(bottom, 252), "{top} {bottom}");
    assert!(near(middle_x, 127) && near(middle_y, 127), "{middle_x} {middle_y}");
}

#[test]
fn any_aspect_ratio_is_cropped_to_cover() {
    for (width, height) in [(640, 1536), (1536, 640), (1024, 1024), (320, 180), (1920, 1080), (2, 2)] {
        let finished = process(&gradient_png(width, height), &ImageSpec::default()).expect("the image is processed");
        assert_eq!(decode(&finished.bytes).dimensions(), (1920, 1080), "{width}x{height}");
    }
}

#[test]
fn oversized_png_becomes_a_jpeg() {
    let mut state = 1_u32;
    let noise = RgbImage::from_fn(1920, 1080, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [a, b, c, _] = state.to_be_bytes();
        Rgb([a, b, c])
    });
    let sent = encode(&noise, image::ImageFormat::Png);
    let spec = ImageSpec { max_bytes: 4 * 1024 * 1024, ..ImageSpec::default() };
    let finished = process(&sent, &spec).expect("the image is processed");
    assert_eq!(finished.format, ImageFormat::Jpeg);
    assert!((finished.bytes.len() as u64) < spec.max_bytes);
    assert_eq!(verify(&finished.bytes, &spec), Ok(()));
    let tiny = ImageSpec { max_bytes: 10_000, ..spec };
    assert!(matches!(process(&sent, &tiny), Err(ImageDefect::TooLarge { .. })));
}

#[test]
fn invalid_images_and_decompression_bombs_are_rejected() {
    let mut bomb = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bomb, 60_000, 60_000);
    encoder.set_color(::png::ColorType::Grayscale);
    drop(encoder.write_header().expect("the header is written"));
    for sent in [&b""[..], b"<html></html>", b"\x89PNG\r\n\x1a\n", &gradient_png(1344, 768)[..5_000], &bomb] {
        assert!(process(sent, &ImageSpec::default()).is_err());
    }
}

#[test]
fn sha256_matches_the_encoded_file() {
    let finished = process(&gradient_png(128, 128), &ImageSpec { width: 64, height: 64, ..ImageSpec::default() });
    let finished = finished.expect("the image is processed");
    assert_eq!(finished.sha256, digest::sha256(&finished.bytes));
}

#[test]
fn png_and_jpeg_both_carry_the_metadata() {
    let metadata = metadata();
    let noisy = RgbImage::from_fn(1920, 1080, |x, y| {
        let mixed = x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(40_503)).rotate_left(x % 31);
        let [a, b, c, _] = mixed.wrapping_mul(2_246_822_519).to_be_bytes();
        Rgb([a, b, c])
    });
    let small = ImageSpec { max_bytes: 4 * 1024 * 1024, ..ImageSpec::default() };
    for (sent, spec, format) in [
        (gradient_png(1344, 768), ImageSpec::default(), ImageFormat::Png),
        (encode(&noisy, image::ImageFormat::Png), small, ImageFormat::Jpeg),
    ] {
        let finished = process(&sent, &spec).expect("the image is processed");
        let metadata::ImageInfo { format: found, width, height, texts: texts_read } =
            metadata::read(&finished.bytes).expect("the file is read");
        assert_eq!((finished.format, found), (format, format));
        assert_eq!((width, height), (1920, 1080));
        let text = |keyword: &str| {
            texts_read.iter().find(|(known, _)| known == keyword).map(|(_, text)| text.as_str()).unwrap_or_default()
        };
        assert_eq!(text("parameters"), metadata.parameters_text());
        assert_eq!(text("Title"), "Project 42, image 3");
        assert_eq!(text("Description"), "黃昏的狐狸");
        assert_eq!(text("Software"), metadata::SOFTWARE);
        assert_eq!(metadata::from_texts(&texts_read).as_ref(), Some(&metadata));
    }
}

#[test]
fn exif_over_the_jpeg_limit_drops_the_longest_text() {
    let mut long = metadata();
    long.params.left_out = vec!["x".repeat(100_000)];
    let exif = metadata::to_exif(&long);
    assert!(exif.len() <= 65_000);
    let noise = encode(&gradient(64, 64), image::ImageFormat::Png);
    let spec = ImageSpec { width: 64, height: 64, max_bytes: 3_000 };
    let finished = super::process(noise.into(), &spec, QualityCheck::default(), &long, &mut Buffers::default());
    let finished = finished.expect("the PNG with the metadata is too large, the JPEG without it is not");
    let metadata::ImageInfo { format, texts: texts_read, .. } =
        metadata::read(&finished.bytes).expect("the file is read");
    assert_eq!(format, ImageFormat::Jpeg);
    assert_eq!(metadata::from_texts(&texts_read), None);
    assert!(texts_read.iter().any(|(keyword, text)| keyword == "parameters" && text.starts_with("A fox at dusk")));
}

#[test]
fn file_without_metadata_has_no_texts() {
    for (file, format) in [
        (gradient_png(64, 48), ImageFormat::Png),
        (encode(&gradient(64, 48), image::ImageFormat::Jpeg), ImageFormat::Jpeg),
    ] {
        let expected = metadata::ImageInfo { format, width: 64, height: 48, texts: vec![] };
        assert_eq!(metadata::read(&file), Ok(expected));
    }
    assert!(metadata::read(b"GIF89a").is_err());
    assert!(metadata::read(&gradient_png(64, 64)[..60]).is_err());
}

#[test]
fn processing_rejects_a_single_colour_image() {
    let blank = encode(&RgbImage::from_pixel(1344, 768, Rgb([10, 20, 200])), image::ImageFormat::Png);
    assert!(matches!(process(&blank, &ImageSpec::default()), Err(ImageDefect::OneColour { .. })));
    // Test 6 accepts a stored file of a single colour: the quality check applies to images from the API, not to files.
    let file = encode(&RgbImage::from_pixel(1920, 1080, Rgb([0, 0, 255])), image::ImageFormat::Png);
    assert_eq!(verify(&file, &ImageSpec::default()), Ok(()));
}

/// The buffers of one image serve an image of another size, and one that fails in between.
#[test]
fn buffers_are_used_again() {
    let mut buffers = Buffers::default();
    let mut process = |sent: &[u8], width, height| {
        let spec = ImageSpec { width, height, ..ImageSpec::default() };
        super::process(Bytes::copy_from_slice(sent), &spec, QualityCheck::default(), &metadata(), &mut buffers)
    };
    for (width, height) in [(640, 360), (64, 64), (320, 180), (400, 300)] {
        let sent = gradient_png(400, 300);
        let first = process(&sent, width, height).expect("the image is processed");
        assert!(process(b"broken", width, height).is_err());
        process(&encode(&gradient(30, 500), image::ImageFormat::Jpeg), width, height).expect("the image is processed");
        let again = process(&sent, width, height).expect("the image is processed");
        assert_eq!(first.sha256, again.sha256);
        assert_eq!(decode(&first.bytes).dimensions(), (width, height));
    }
}

/// The decoder accepts a JPEG whose scan ends early, and leaves the rest of the pixels as they are.
#[test]
fn pixels_that_a_damaged_jpeg_leaves_out_are_black() {
    let mut damaged = encode(&gradient(256, 256), image::ImageFormat::Jpeg);
    let scan = damaged.windows(2).rposition(|marker| marker == [0xFF, 0xDA]).expect("a scan");
    let middle = scan + (damaged.len() - scan) / 2;
    // A comment, and the end of the image.
    damaged.splice(middle.., [0xFF, 0xFE, 0x00, 0x02, 0xFF, 0xD9]);
    let length = 256 * 256 * 3;
    let decode = |buffer| super::decode(&damaged, buffer).map(RgbImage::into_raw);
    assert_eq!(decode(vec![255; length]), decode(vec![0; length]));
}

/// A small file whose sides are allowed, but not the memory of its pixels.
#[test]
fn image_with_too_much_memory_is_refused_before_it_is_allocated() {
    let mut file = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut file, 8_192, 8_192);
    encoder.set_color(::png::ColorType::Rgba);
    encoder.set_depth(::png::BitDepth::Sixteen);
    let mut writer = encoder.write_header().expect("the header is written");
    writer.write_chunk(::png::chunk::IDAT, &[0x78, 0x01]).expect("the first bytes of the pixels are written");
    drop(writer);
    let refused = process(&file, &ImageSpec::default()).expect_err("the image is too large").to_string();
    assert!(refused.contains("its pixels take 536870912 bytes, at most 268435456 are allowed"), "{refused}");
}

/// A PNG is refused unless all its pixels are there: pixels of the image before cannot show.
#[test]
fn png_without_all_pixels_is_refused() {
    let noise =
        RgbImage::from_fn(64, 64, |x, y| Rgb([x, y, x * y].map(|value| u8::try_from(value % 251).unwrap_or(0))));
    let mut header = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut header, 64, 65);
    encoder.set_color(::png::ColorType::Rgb);
    drop(encoder.write_header().expect("the header is written"));
    // The signature and the header of a picture that has one more row, then the pixels.
    let whole = encode(&noise, image::ImageFormat::Png);
    let taller = [&header[..33], &whole[33..]].concat();
    for file in [&taller[..], &whole[..whole.len() - 60]] {
        assert!(super::decode(file, vec![255; 64 * 65 * 3]).is_err());
    }
    assert_eq!(super::decode(&whole, vec![255; 64 * 65 * 3]), Ok(noise));
}

/// The decoder makes up what a truncated JPEG lacks.
#[test]
fn truncated_jpeg_is_rejected_wherever_it_ends() {
    let spec = ImageSpec { width: 96, height: 54, ..ImageSpec::default() };
    let whole = encode(&gradient(96, 54), image::ImageFormat::Jpeg);
    assert_eq!(verify(&whole, &spec), Ok(()));
    assert!(image::load_from_memory(&whole[..whole.len() * 3 / 4]).is_ok(), "the reason for this test");
    for length in 0..whole.len() {
        assert!(verify(&whole[..length], &spec).is_err(), "{length} of {} bytes", whole.len());
    }
}

/// A PNG with pixels of 16 bits, and with this colour profile.
fn png_with(pixels: &[u16], profile: Option<Vec<u8>>) -> Vec<u8> {
    let mut file = Vec::new();
    let mut info = ::png::Info::with_size(u32::try_from(pixels.len() / 3).expect("few pixels"), 1);
    info.icc_profile = profile.map(Into::into);
    info.color_type = ::png::ColorType::Rgb;
    info.bit_depth = ::png::BitDepth::Sixteen;
    let encoder = ::png::Encoder::with_info(&mut file, info).expect("a valid header");
    let mut writer = encoder.write_header().expect("the header is written");
    let bytes: Vec<u8> = pixels.iter().flat_map(|value| value.to_be_bytes()).collect();
    writer.write_image_data(&bytes).expect("the pixels are written");
    writer.finish().expect("the file ends");
    file
}

#[test]
fn sixteen_bits_a_channel_are_rounded_to_eight() {
    let pixels: Vec<u16> = vec![0, 128, 129, 257, 385, 386, 32_767, 32_896, 65_407, 65_406, 65_534, 65_535];
    let decoded = super::decode(&png_with(&pixels, None), Vec::new()).expect("the image is decoded");
    let expected: Vec<u8> =
        pixels.iter().map(|value| u8::try_from((u32::from(*value) + 128) / 257).expect("a byte")).collect();
    assert_eq!(decoded.as_raw(), &expected);
}

#[test]
fn colours_of_a_profile_are_converted_to_srgb() {
    let profile = |profile: moxcms::ColorProfile| Some(profile.encode().expect("the profile is encoded"));
    let decode = |pixel: [u16; 3], profile| {
        let pixel = pixel.map(|value| value * 257);
        super::decode(&png_with(&pixel, profile), Vec::new()).map(|decoded| decoded.get_pixel(0, 0).0)
    };
    let near = |found: [u8; 3], wanted: [u8; 3]| found.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= 1);
    // Source of the values: CSS Color 4, conversion of display-p3 to sRGB.
    let converted = decode([200, 100, 50], profile(moxcms::ColorProfile::new_display_p3())).expect("an image");
    assert!(near(converted, [215, 93, 31]), "{converted:?}");
    let same = decode([200, 100, 50], profile(moxcms::ColorProfile::new_srgb())).expect("an image");
    assert!(near(same, [200, 100, 50]), "{same:?}");
    let grey = decode([200, 100, 50], profile(moxcms::ColorProfile::new_gray_with_gamma(2.2)));
    let error = grey.expect_err("the profile is not for RGB").to_string();
    assert_eq!(error, "not a readable image: its colour profile cannot be converted: it is for Gray, expected Rgb");
    let error = decode([0; 3], Some(vec![0; 200])).expect_err("the profile is damaged").to_string();
    assert!(error.starts_with("not a readable image: its colour profile cannot be converted: "), "{error}");
}

#[test]
fn compressed_texts_are_bounded_while_they_are_read() {
    let bomb = "x".repeat(64 * 1024 * 1024);
    let mut file = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut file, 1, 1);
    encoder.add_ztxt_chunk("Title".to_owned(), bomb.clone()).expect("a valid keyword");
    encoder.add_ztxt_chunk("Short".to_owned(), "A short text".to_owned()).expect("a valid keyword");
    let mut writer = encoder.write_header().expect("the header is written");
    let mut long = ::png::text_metadata::ITXtChunk::new("Description", bomb);
    long.compressed = true;
    writer.write_text_chunk(&long).expect("the text is written");
    for number in 0..20 {
        let chunk = ::png::text_metadata::ZTXtChunk::new(format!("Text {number}"), "again");
        writer.write_text_chunk(&chunk).expect("the text is written");
    }
    writer.write_image_data(&[0]).expect("the pixels are written");
    writer.finish().expect("the file ends");
    assert!(file.len() < 1_000_000, "{} bytes", file.len());
    let texts = metadata::read(&file).expect("the file is readable").texts;
    // Of the first 16 compressed texts, two are too long.
    assert_eq!(texts.len(), 14);
    assert_eq!(texts[0], ("Short".to_owned(), "A short text".to_owned()));
    assert!(texts.iter().all(|(_, text)| text.len() < 100));
}

#[test]
fn sharpness_does_not_depend_on_the_size_of_the_file() {
    let original = RgbImage::from_fn(1344, 768, |x, y| {
        let value = u8::try_from((x * 7 + y * 13 + x * y / 50) % 256).expect("below 256");
        Rgb([value, value / 2, 255 - value])
    });
    let blurred = image::imageops::fast_blur(&original, 2.0);
    let check = QualityCheck { min_sharpness: 100.0 };
    let stored = |picture: &RgbImage| process(&encode(picture, image::ImageFormat::Png), &ImageSpec::default());
    for (picture, expected) in [(original, true), (blurred, false)] {
        let file = stored(&picture).expect("the image is processed").bytes;
        assert_eq!((check.check(&picture).is_ok(), check.check_file(&file).is_ok()), (expected, expected));
    }
}

#[test]
fn upscaled_image_must_have_the_expected_size_and_contrast() {
    let spec = ImageSpec { width: 192, height: 108, ..ImageSpec::default() };
    let process = |picture: &RgbImage| {
        let sent = encode(picture, image::ImageFormat::Jpeg);
        super::process_upscaled(sent.into(), (512, 288), &spec, &metadata()).map_err(|defect| defect.to_string())
    };
    let finished = process(&gradient(512, 288)).expect("the image is processed");
    assert_eq!(decode(&finished.bytes).dimensions(), (192, 108));
    let read = metadata::read(&finished.bytes).expect("the file is readable");
    assert_eq!(metadata::from_texts(&read.texts), Some(metadata()));
    let error = process(&gradient(128, 72)).expect_err("the image was not upscaled");
    assert_eq!(error, "wrong resolution: 128x72, expected 512x288");
    let error = process(&RgbImage::new(512, 288)).expect_err("the image is black");
    assert!(error.starts_with("image of a single colour"), "{error}");
}
