//! The PNG encoder: not an input from outside, but a codec of our own.

use fast_png::{Picture, check, encode};

/// The longest sides of a picture, in pixels: more than one block, and rows longer than the longest run.
const MAX_SIDES: (u32, u32) = (128, 256);

/// Encodes a picture whose size and pixels follow from the bytes.
///
/// Two independent decoders must return the pixels, the check must accept the file, and refuse it with a changed byte.
pub fn check_encoder(bytes: &[u8]) {
    let [width, height, place, rest @ ..] = bytes else { return };
    let (width, height) = (u32::from(*width) % MAX_SIDES.0 + 1, u32::from(*height) % MAX_SIDES.1 + 1);
    let length = (width * height * 3) as usize;
    // Repeated, so that a short input makes a large picture.
    let pixels: Vec<u8> = rest.iter().copied().chain([0]).cycle().take(length).collect();
    let picture = Picture::new(width, height, &pixels).expect("the picture has its number of pixels");
    let mut file = encode(&picture, [("Title", "A fox")]);
    assert_eq!(check(&file, &picture), Ok(()));
    assert!(decode_with_png(&file) == pixels, "png decodes other pixels");
    assert!(decode_with_zune(&file) == pixels, "zune-png decodes other pixels");
    let place = usize::from(*place) * 251 % file.len();
    file[place] ^= 1 << (place % 8);
    assert!(check(&file, &picture).is_err(), "a changed byte at {place} was not found");
}

/// Decodes with `png`, whose decompressor is `fdeflate`.
fn decode_with_png(file: &[u8]) -> Vec<u8> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(file));
    decoder.ignore_checksums(false);
    let mut reader = decoder.read_info().expect("a header");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    reader.next_frame(&mut pixels).expect("pixels");
    pixels
}

/// Decodes with `zune-png`, whose decompressor is `zune-inflate`.
fn decode_with_zune(file: &[u8]) -> Vec<u8> {
    let options = zune_png::zune_core::options::DecoderOptions::new_safe().png_set_confirm_crc(true);
    let options = options.inflate_set_confirm_adler(true);
    let reader = zune_png::zune_core::bytestream::ZCursor::new(file);
    zune_png::PngDecoder::new_with_options(reader, options).decode_raw().expect("a correct file")
}
