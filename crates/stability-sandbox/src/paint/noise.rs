//! Reproducible pseudo-random numbers and noise.

/// The pseudo-random number generator `SplitMix64`.
#[derive(Debug, Clone)]
pub(super) struct SplitMix64(u64);

impl SplitMix64 {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix_bits(self.0)
    }

    /// A number from `low` to `high`.
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * unit_f32(self.next_u64())
    }

    /// A whole number below `count`.
    pub(super) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next_u64() % count as u64).expect("below a usize")
    }
}

fn mix_bits(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Maps the upper 24 bits, which an `f32` represents exactly, to 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32")]
fn unit_f32(bits: u64) -> f32 {
    (bits >> 40) as f32 / 16_777_216.0
}

/// A pseudo-random number from 0 to 1 for a grid point.
#[expect(clippy::cast_sign_loss, reason = "the hash accepts any bit pattern")]
pub(super) fn value_at(x: i32, y: i32, salt: u32) -> f32 {
    let key = (u64::from(x as u32) << 32) ^ u64::from(y as u32) ^ (u64::from(salt) << 17).wrapping_mul(0x9E37_79B9);
    unit_f32(mix_bits(key.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// Noise from 0 to 1, interpolated between grid points.
#[expect(clippy::cast_possible_truncation, reason = "coordinates are small")]
fn smooth_noise(x: f32, y: f32, salt: u32) -> f32 {
    let (xi, yi) = (x.floor() as i32, y.floor() as i32);
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (tx, ty) = (ease(x - x.floor()), ease(y - y.floor()));
    let row = |y| value_at(xi, y, salt) * (1.0 - tx) + value_at(xi + 1, y, salt) * tx;
    row(yi) * (1.0 - ty) + row(yi + 1) * ty
}

/// Sum of several octaves of noise, from 0 to 1.
pub(super) fn fractal_noise(x: f32, y: f32, salt: u32, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut scale, mut total) = (0.0, 0.5, 1.0, 0.0);
    for octave in 0..octaves {
        sum += weight * smooth_noise(x * scale, y * scale, salt + octave);
        total += weight;
        weight *= 0.5;
        scale *= 2.03;
    }
    sum / total
}
