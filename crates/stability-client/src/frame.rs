//! How large, or of which shape, a picture is asked for.

use std::fmt;

/// The width and height of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// What a request says of the picture's shape: the v1 API wants a size, the v2beta API an aspect ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// For the engines of the v1 API.
    Size(Size),
    /// For the engines of the v2beta API.
    AspectRatio(AspectRatio),
}

/// The only sizes that SDXL 1.0 takes; any other is a 400 `invalid_sdxl_v1_dimensions`.
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

/// The sides that SD 1.6 takes: from, to, in steps of.
const SD16_SIDES: (u32, u32, u32) = (320, 1536, 64);
/// The most pixels that are asked of SD 1.6 unless a size is named: as many as SDXL makes.
const SD16_PIXELS: u32 = 1024 * 1024;

impl Size {
    const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// How far apart two shapes are; 0 where they are alike.
    fn distance(self, other: Self) -> f64 {
        let ratio = |size: Self| f64::from(size.width) / f64::from(size.height);
        (ratio(self).ln() - ratio(other).ln()).abs()
    }

    pub(crate) fn nearest_of_sdxl(wanted: Self) -> Self {
        let nearer = |a: &&Self, b: &&Self| a.distance(wanted).total_cmp(&b.distance(wanted));
        *SDXL_SIZES.iter().min_by(nearer).expect("there are sizes")
    }

    /// The nearest shape of at most a megapixel, and of those the largest.
    pub(crate) fn nearest_of_sd16(wanted: Self) -> Self {
        let (from, to, step) = SD16_SIDES;
        let sides = || (from..=to).step_by(step as usize);
        sides()
            .flat_map(|width| sides().map(move |height| Self { width, height }))
            .filter(|size| size.width * size.height <= SD16_PIXELS)
            .min_by(|a, b| {
                let pixels = |size: &Self| size.width * size.height;
                a.distance(wanted).total_cmp(&b.distance(wanted)).then(pixels(b).cmp(&pixels(a)))
            })
            .expect("there are sizes")
    }

    pub(crate) fn is_of_sdxl(self) -> bool {
        SDXL_SIZES.contains(&self)
    }

    pub(crate) fn is_of_sd16(self) -> bool {
        let (from, to, step) = SD16_SIDES;
        [self.width, self.height].iter().all(|side| (from..=to).contains(side) && side % step == 0)
    }

    pub(crate) fn list_of_sdxl() -> String {
        SDXL_SIZES.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            Self::AspectRatio(ratio) => f.write_str(ratio.as_str()),
        }
    }
}

macro_rules! aspect_ratios {
    ($($variant:ident => $width:literal : $height:literal,)+) => {
        /// The shapes of the v2beta API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum AspectRatio {
            $($variant,)+
        }

        impl AspectRatio {
            /// Every aspect ratio.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The API's name of it, such as `16:9`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => concat!($width, ":", $height),)+ }
            }

            fn size(self) -> Size {
                match self { $(Self::$variant => Size::new($width, $height),)+ }
            }
        }
    };
}

aspect_ratios! {
    SixteenNine => 16:9,
    OneOne => 1:1,
    TwentyOneNine => 21:9,
    TwoThree => 2:3,
    ThreeTwo => 3:2,
    FourFive => 4:5,
    FiveFour => 5:4,
    NineSixteen => 9:16,
    NineTwentyOne => 9:21,
}

impl AspectRatio {
    pub(crate) fn nearest(wanted: Size) -> Self {
        let nearer = |a: &&Self, b: &&Self| a.size().distance(wanted).total_cmp(&b.size().distance(wanted));
        *Self::ALL.iter().min_by(nearer).expect("there are aspect ratios")
    }

    pub(crate) fn list() -> String {
        Self::ALL.iter().map(|ratio| ratio.as_str()).collect::<Vec<_>>().join(", ")
    }
}
