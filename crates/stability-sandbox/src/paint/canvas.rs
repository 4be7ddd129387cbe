//! Pixels and colours.

/// An RGB colour with channels from 0 to 1; no gamma correction is applied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Colour(pub(super) f32, pub(super) f32, pub(super) f32);

impl Colour {
    pub(super) const fn from_hex(hex: u32) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a byte fits an f32")]
        const fn channel(hex: u32, shift: u32) -> f32 {
            ((hex >> shift) & 0xFF) as f32 / 255.0
        }
        Self(channel(hex, 16), channel(hex, 8), channel(hex, 0))
    }

    /// Mixes `share` (0 to 1) of `other` with the rest of this colour.
    pub(super) fn mix(self, other: Self, share: f32) -> Self {
        let share = share.clamp(0.0, 1.0);
        let one = |a: f32, b: f32| a + (b - a) * share;
        Self(one(self.0, other.0), one(self.1, other.1), one(self.2, other.2))
    }

    pub(super) fn scale_brightness(self, factor: f32) -> Self {
        Self(self.0 * factor, self.1 * factor, self.2 * factor)
    }
}

/// The pixels of an image.
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pixels: Vec<u8>,
}

/// The keyword of the text chunk that holds the prompt.
pub(super) const PROMPT_KEYWORD: &str = "prompt";

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
fn to_byte(value: f32) -> u8 {
    (value * 255.0).round().clamp(0.0, 255.0) as u8
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![96; width * height * 3] }
    }

    pub(super) fn set_pixel(&mut self, x: usize, y: usize, colour: Colour) {
        let offset = (y * self.width + x) * 3;
        self.pixels[offset..offset + 3].copy_from_slice(&[to_byte(colour.0), to_byte(colour.1), to_byte(colour.2)]);
    }

    /// Blends a colour into a pixel; pixels outside the canvas are ignored.
    pub(super) fn blend_pixel(&mut self, x: usize, y: usize, colour: Colour, share: f32) {
        if x >= self.width || y >= self.height {
            return;
        }
        let offset = (y * self.width + x) * 3;
        let [r, g, b] = [0, 1, 2].map(|channel| f32::from(self.pixels[offset + channel]) / 255.0);
        self.set_pixel(x, y, Colour(r, g, b).mix(colour, share));
    }

    /// Blurs the picture.
    pub(super) fn blur(&mut self, sigma: f32) {
        let side = |side: usize| u32::try_from(side).expect("an image side fits a u32");
        let (width, height) = (side(self.width), side(self.height));
        let sharp = image::RgbImage::from_raw(width, height, std::mem::take(&mut self.pixels));
        self.pixels = image::imageops::fast_blur(&sharp.expect("three bytes a pixel"), sigma).into_raw();
    }

    /// Encodes the picture, with its prompt: by the prompt, the sandbox recognises an image that it is to upscale.
    pub(super) fn into_png(self, prompt: &str) -> Vec<u8> {
        let side = |side: usize| u32::try_from(side).expect("an image side fits a u32");
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, side(self.width), side(self.height));
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_compression(png::Compression::Fast);
        encoder.add_itxt_chunk(PROMPT_KEYWORD.to_owned(), prompt.to_owned()).expect("the keyword is Latin-1");
        let mut writer = encoder.write_header().expect("writing to memory");
        writer.write_image_data(&self.pixels).expect("the number of pixels matches the header");
        writer.finish().expect("writing to memory");
        file
    }
}
