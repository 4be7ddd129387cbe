//! Encodes photographs as PNG with little CPU time, and proves that a file decodes to the same pixels.
//!
//! The encoder handles 8-bit RGB only. It makes few choices, each of them cheap: one row filter for each block of rows,
//! picked from a sample; one Huffman code for each block, computed from the same sample; and of all matches only runs
//! of zeros. Files of photographs are about as large as those of zlib at its default level.
//!
//! [`check`] proves that a file of this encoder decodes to the given pixels. It reads the file as a decoder does, but
//! because it knows the pixels, it compares code words instead of looking them up, which costs less than decoding.
//!
//! Format: PNG, third edition (W3C), and DEFLATE (RFC 1951) in a zlib stream (RFC 1950).

mod bits;
mod check;
mod chunk;
mod deflate;
mod encode;
mod filter;
mod huffman;

pub use check::{CheckError, check};
pub use encode::encode;

/// The most bytes of a picture's pixels.
const MAX_PIXEL_BYTES: usize = 1 << 30;
/// Bytes of a pixel: red, green and blue.
const PIXEL_BYTES: usize = 3;

/// An image of 8-bit RGB pixels.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    width: u32,
    height: u32,
    pixels: &'a [u8],
}

impl<'a> Picture<'a> {
    /// Describes the pixels of an image, row by row from the top. `None` unless both sides are from 1 to 65,535 and
    /// `pixels` has three bytes for each pixel, at most 1 GiB: a chunk of PNG is shorter than 2 GiB.
    pub fn new(width: u32, height: u32, pixels: &'a [u8]) -> Option<Self> {
        let sides = 1..=u32::from(u16::MAX);
        let expected = (width as usize).checked_mul(height as usize)?.checked_mul(PIXEL_BYTES)?;
        let is_valid = sides.contains(&width)
            && sides.contains(&height)
            && pixels.len() == expected
            && expected <= MAX_PIXEL_BYTES;
        is_valid.then_some(Self { width, height, pixels })
    }

    fn row_bytes(&self) -> usize {
        self.width as usize * PIXEL_BYTES
    }

    /// A row, and the row above it: zeros for the first row.
    fn row_and_above<'b>(&self, y: usize, zeros: &'b [u8]) -> (&'b [u8], &'b [u8])
    where
        'a: 'b,
    {
        let length = self.row_bytes();
        let pixels: &'b [u8] = self.pixels;
        let row = &pixels[y * length..(y + 1) * length];
        (row, if y == 0 { zeros } else { &pixels[(y - 1) * length..y * length] })
    }
}
