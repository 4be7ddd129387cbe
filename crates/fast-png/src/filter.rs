//! The row filters of PNG: each byte is replaced by its difference from a prediction.

use multiversion::multiversion;

use crate::PIXEL_BYTES;

/// A row filter. The value is the filter type byte. Source: PNG specification, "Filter types for filter method 0".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// The pixel to the left.
    Sub = 1,
    /// The pixel above.
    Up = 2,
    /// The mean of both.
    Average = 3,
    /// Whichever of left, above and above left is nearest to left + above - above left.
    Paeth = 4,
}

impl Filter {
    /// The filters between which the encoder chooses.
    pub(crate) const ALL: [Self; 4] = [Self::Average, Self::Sub, Self::Up, Self::Paeth];

    /// The filter type byte, which precedes each row.
    pub(crate) fn type_byte(self) -> u8 {
        self as u8
    }

    /// Filters a row into `out`. All slices have the same length, a multiple of a pixel's.
    ///
    /// The loops are written so that the compiler vectorises them.
    pub(crate) fn apply(self, row: &[u8], above: &[u8], out: &mut [u8]) {
        apply(self, row, above, out);
    }
}

#[multiversion(targets("x86_64+avx2+bmi1+bmi2+lzcnt+popcnt"))]
fn apply(filter: Filter, row: &[u8], above: &[u8], out: &mut [u8]) {
    let (first, rest) = out.split_at_mut(PIXEL_BYTES);
    let left = &row[..row.len() - PIXEL_BYTES];
    let above_left = &above[..above.len() - PIXEL_BYTES];
    let pixels = rest.iter_mut().zip(&row[PIXEL_BYTES..]).zip(left);
    match filter {
        Filter::Sub => {
            first.copy_from_slice(&row[..PIXEL_BYTES]);
            for ((out, byte), left) in pixels {
                *out = byte.wrapping_sub(*left);
            }
        }
        Filter::Up => {
            for ((out, byte), above) in out.iter_mut().zip(row).zip(above) {
                *out = byte.wrapping_sub(*above);
            }
        }
        Filter::Average => {
            for ((out, byte), above) in first.iter_mut().zip(row).zip(above) {
                *out = byte.wrapping_sub(above / 2);
            }
            for (((out, byte), left), above) in pixels.zip(&above[PIXEL_BYTES..]) {
                // Their mean, rounded down, without a ninth bit: more bytes fit into a vector than with `midpoint`.
                let mean = (left & above) + ((left ^ above) >> 1);
                *out = byte.wrapping_sub(mean);
            }
        }
        Filter::Paeth => {
            for ((out, byte), above) in first.iter_mut().zip(row).zip(above) {
                *out = byte.wrapping_sub(*above);
            }
            for ((((out, byte), left), above), above_left) in pixels.zip(&above[PIXEL_BYTES..]).zip(above_left) {
                *out = byte.wrapping_sub(paeth(*left, *above, *above_left));
            }
        }
    }
}

/// The predictor of the Paeth filter; ties prefer left, then above.
fn paeth(left: u8, above: u8, above_left: u8) -> u8 {
    let (a, b, c) = (i16::from(left), i16::from(above), i16::from(above_left));
    let (from_left, from_above, from_above_left) = ((b - c).abs(), (a - c).abs(), (a + b - 2 * c).abs());
    if from_left <= from_above && from_left <= from_above_left {
        left
    } else if from_above <= from_above_left {
        above
    } else {
        above_left
    }
}
