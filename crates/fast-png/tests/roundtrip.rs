//! Pictures of many kinds are decoded by two independent decoders, and every damage to a file is found.

use asset_fast_png::{Picture, check, encode};
use proptest::prelude::*;

/// Decodes with `png`, whose decompressor is `fdeflate`.
fn decode_with_png(file: &[u8]) -> Vec<u8> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(file));
    // Checks the CRC of each chunk and the Adler-32 of the stream.
    decoder.ignore_checksums(false);
    let mut reader = decoder.read_info().expect("a header");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut pixels).expect("pixels");
    reader.finish().expect("the end of the file");
    assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    pixels
}

/// Decodes with `zune-png`, whose decompressor is `zune-inflate`.
fn decode_with_zune(file: &[u8]) -> Vec<u8> {
    let options = zune_png::zune_core::options::DecoderOptions::new_safe()
        .png_set_confirm_crc(true)
        .inflate_set_confirm_adler(true);
    let reader = zune_png::zune_core::bytestream::ZCursor::new(file);
    zune_png::PngDecoder::new_with_options(reader, options).decode_raw().expect("a correct file")
}

fn check_round_trip(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let picture = Picture::new(width, height, pixels).expect("a picture");
    let file = encode(&picture, [("Title", "A café"), ("Description", "黃昏的狐狸")]);
    assert_eq!(check(&file, &picture), Ok(()), "{width}x{height}");
    assert!(decode_with_png(&file) == pixels, "{width}x{height}: other pixels");
    assert!(decode_with_zune(&file) == pixels, "{width}x{height}: other pixels");
    file
}

/// A small generator of numbers, so that a picture follows from its seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.to_le_bytes()[7]
    }
}

/// A picture of one kind: noise, a gradient with noise, flat areas, or stripes.
fn paint(kind: u8, width: u32, height: u32, seed: u64) -> Vec<u8> {
    let mut noise = Noise(seed);
    let flat = [noise.next(), noise.next(), noise.next()];
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for (channel, flat) in flat.into_iter().enumerate() {
                let low_bits = |value: u32| value.to_le_bytes()[0];
                pixels.push(match kind {
                    0 => noise.next(),
                    1 => low_bits(x / 3 + y / 5 + u32::try_from(channel).unwrap_or(0)).wrapping_add(noise.next() % 4),
                    2 if (x + y) % 97 == 0 => noise.next(),
                    2 => flat,
                    _ => low_bits(x / 16).wrapping_mul(37),
                });
            }
        }
    }
    pixels
}

/// Sets the CRC of the chunk with the pixels to the right value.
fn repair_crc(file: &mut [u8]) {
    let kind = file.windows(4).position(|kind| kind == b"IDAT").expect("a chunk with pixels");
    let length: [u8; 4] = file[kind - 4..kind].try_into().expect("four bytes");
    let end = kind + 4 + u32::from_be_bytes(length) as usize;
    let crc = crc32fast::hash(&file[kind..end]);
    file[end..end + 4].copy_from_slice(&crc.to_be_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_picture_survives(kind in 0_u8..4, width in 1_u32..320, height in 1_u32..500, seed: u64) {
        check_round_trip(width, height, &paint(kind, width, height, seed));
    }
}

proptest! {
    /// The CRC is right: only the check of the stream can find the change.
    #[test]
    fn change_with_a_right_crc_is_found(kind in 0_u8..4, seed: u64, place: prop::sample::Index, change in 1_u8..) {
        let pixels = paint(kind, 40, 240, seed);
        let picture = Picture::new(40, 240, &pixels).expect("a picture");
        let mut file = encode(&picture, []);
        let data = pixel_data(&file);
        let place = data.start + place.index(data.len());
        file[place] ^= change;
        repair_crc(&mut file);
        prop_assert!(check(&file, &picture).is_err(), "byte {place} of {}", file.len());
    }

    #[test]
    fn every_changed_byte_is_found(kind in 0_u8..4, seed: u64, place: prop::sample::Index, change in 1_u8..) {
        let pixels = paint(kind, 40, 140, seed);
        let picture = Picture::new(40, 140, &pixels).expect("a picture");
        let mut file = encode(&picture, [("Title", "A fox")]);
        let place = place.index(file.len());
        file[place] ^= change;
        prop_assert!(check(&file, &picture).is_err(), "byte {place} of {}", file.len());
    }

    #[test]
    fn every_truncated_file_is_found(kind in 0_u8..4, seed: u64, length: prop::sample::Index) {
        let pixels = paint(kind, 40, 140, seed);
        let picture = Picture::new(40, 140, &pixels).expect("a picture");
        let file = encode(&picture, []);
        prop_assert!(check(&file[..length.index(file.len())], &picture).is_err());
        prop_assert!(check(&[&file[..], &[0]].concat(), &picture).is_err());
    }

    #[test]
    fn other_pixels_are_found(kind in 0_u8..4, seed: u64, place: prop::sample::Index, change in 1_u8..) {
        let mut pixels = paint(kind, 40, 140, seed);
        let file = encode(&Picture::new(40, 140, &pixels).expect("a picture"), []);
        let place = place.index(pixels.len());
        pixels[place] ^= change;
        prop_assert!(check(&file, &Picture::new(40, 140, &pixels).expect("a picture")).is_err());
    }

    #[test]
    fn arbitrary_files_never_panic(file: Vec<u8>, pixels in proptest::collection::vec(any::<u8>(), 12)) {
        let picture = Picture::new(2, 2, &pixels).expect("a picture");
        prop_assert!(check(&file, &picture).is_err());
    }
}

/// Where the data of the chunk with the pixels begins and ends in a file without texts.
fn pixel_data(file: &[u8]) -> std::ops::Range<usize> {
    41..file.len() - 16
}

#[test]
fn wrong_checksum_of_the_stream_is_found() {
    let pixels = paint(1, 64, 64, 1);
    let picture = Picture::new(64, 64, &pixels).expect("a picture");
    for byte in 1..=4 {
        let mut file = encode(&picture, []);
        let place = pixel_data(&file).end - byte;
        file[place] ^= 0x10;
        repair_crc(&mut file);
        let error = check(&file, &picture).expect_err("a wrong checksum").to_string();
        assert_eq!(error, "the compressed pixels are damaged: wrong checksum");
    }
}

#[test]
fn data_after_the_last_block_is_found() {
    let pixels = paint(1, 64, 64, 1);
    let picture = Picture::new(64, 64, &pixels).expect("a picture");
    let mut file = encode(&picture, []);
    let checksum = pixel_data(&file).end - 4;
    file.insert(checksum, 0);
    let length = u32::try_from(pixel_data(&file).len()).expect("a short file");
    file[33..37].copy_from_slice(&length.to_be_bytes());
    repair_crc(&mut file);
    let error = check(&file, &picture).expect_err("one byte too many").to_string();
    assert_eq!(error, "the compressed pixels are damaged: data after its end");
}

/// The checksums of chunk and stream are correct: only the comparison with the pixels finds the difference.
#[test]
fn file_of_another_picture_is_found() {
    let (one, other) = (paint(1, 64, 64, 1), paint(1, 64, 64, 2));
    let file = encode(&Picture::new(64, 64, &one).expect("a picture"), []);
    let error = check(&file, &Picture::new(64, 64, &other).expect("a picture")).expect_err("other pixels");
    assert_eq!(error.to_string(), "row 0 decodes to other pixels");
}

#[test]
fn flat_pictures_are_small() {
    let file = check_round_trip(1920, 1080, &[10, 20, 200].repeat(1920 * 1080));
    assert!(file.len() < 40_000, "{} bytes", file.len());
}

#[test]
fn picture_must_have_its_number_of_pixels() {
    assert!(Picture::new(2, 2, &[0; 12]).is_some());
    for (width, height, length) in [(2, 2, 11), (0, 2, 0), (65_536, 1, 65_536 * 3), (u32::MAX, u32::MAX, 0)] {
        assert!(Picture::new(width, height, &vec![0; length]).is_none(), "{width}x{height}");
    }
}

#[test]
fn texts_are_stored_as_latin_1_or_utf_8() {
    let pixels = paint(0, 4, 4, 1);
    let file = check_round_trip(4, 4, &pixels);
    let reader = png::Decoder::new(std::io::Cursor::new(&file[..])).read_info().expect("a header");
    let info = reader.info();
    assert_eq!(
        (info.uncompressed_latin1_text[0].keyword.as_str(), info.uncompressed_latin1_text[0].text.as_str()),
        ("Title", "A café")
    );
    assert_eq!(
        (info.utf8_text[0].keyword.as_str(), info.utf8_text[0].get_text().expect("a text")),
        ("Description", "黃昏的狐狸".to_owned())
    );
}
