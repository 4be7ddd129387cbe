//! Dimensions of an image in a request: a size or an aspect ratio.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::options::AspectRatio;

/// Width and height of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// Dimensions of the image in a request: a size for v1 engines, an aspect ratio for v2beta engines.
///
/// [`Engine::dimensions_for`](crate::Engine::dimensions_for) chooses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Dimensions {
    /// For v1 engines.
    Size(Size),
    /// For v2beta engines.
    AspectRatio(AspectRatio),
}

/// The only sizes that SDXL 1.0 supports; the API rejects others with status 400, `invalid_sdxl_v1_dimensions`.
const SDXL_SIZES: [Size; 9] = [
    Size::new(1024, 1024),
    Size::new(1152, 896),
    Size::new(1216, 832),
    Size::new(1344, 768),
    Size::new(1536, 640),
    Size::new(640, 1536),
    Size::new(768, 1344),
    Size::new(832, 1216),
    Size::new(896, 1152),
];

impl Size {
    const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Distance of two aspect ratios: the absolute difference of their logarithms; 0 if they are equal.
    fn aspect_distance(self, other: Self) -> f64 {
        let ratio = |size: Self| f64::from(size.width) / f64::from(size.height);
        (ratio(self).ln() - ratio(other).ln()).abs()
    }

    pub(crate) fn nearest_sdxl(wanted: Self) -> Self {
        let by_distance = |a: &&Self, b: &&Self| a.aspect_distance(wanted).total_cmp(&b.aspect_distance(wanted));
        *SDXL_SIZES.iter().min_by(by_distance).expect("SDXL_SIZES is not empty")
    }

    pub(crate) fn is_valid_for_sdxl(self) -> bool {
        SDXL_SIZES.contains(&self)
    }

    pub(crate) fn format_sdxl_sizes() -> String {
        SDXL_SIZES.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl fmt::Display for Dimensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            Self::AspectRatio(ratio) => f.write_str(ratio.as_str()),
        }
    }
}

impl AspectRatio {
    /// The smallest whole numbers with this ratio.
    fn size(self) -> Size {
        let (width, height) = self.as_str().split_once(':').expect("the name has a colon");
        let side = |text: &str| text.parse().expect("the name has two numbers");
        Size::new(side(width), side(height))
    }

    pub(crate) fn nearest(wanted: Size) -> Self {
        let by_distance =
            |a: &&Self, b: &&Self| a.size().aspect_distance(wanted).total_cmp(&b.size().aspect_distance(wanted));
        *Self::ALL.iter().min_by(by_distance).expect("AspectRatio::ALL is not empty")
    }

    pub(crate) fn format_all() -> String {
        Self::ALL.iter().map(|ratio| ratio.as_str()).collect::<Vec<_>>().join(", ")
    }
}
