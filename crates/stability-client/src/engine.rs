//! The engines, the sizes they take, and the style presets.
//!
//! Source: Stability's v1 specification.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The width and height of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Size {
    const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    fn aspect_ratio(self) -> f64 {
        f64::from(self.width) / f64::from(self.height)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// What makes the picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// SDXL 1.0 on the v1 API.
    #[default]
    Sdxl10,
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

impl Engine {
    /// Every engine this client can use.
    pub const ALL: &'static [Self] = &[Self::Sdxl10];

    /// The API's name of the engine.
    pub fn id(self) -> &'static str {
        match self {
            Self::Sdxl10 => "stable-diffusion-xl-1024-v1-0",
        }
    }

    /// The sizes it takes.
    pub fn sizes(self) -> &'static [Size] {
        match self {
            Self::Sdxl10 => &SDXL_SIZES,
        }
    }

    /// The size whose aspect ratio is nearest to `width` : `height`; neither may be 0.
    pub fn size_for(self, width: u32, height: u32) -> Size {
        let wanted = Size::new(width.max(1), height.max(1)).aspect_ratio().ln();
        let distance = |size: &Size| (size.aspect_ratio().ln() - wanted).abs();
        *self.sizes().iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("an engine has sizes")
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// A name that this client does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not known; one of {allowed}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    allowed: String,
}

impl FromStr for Engine {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.iter().copied().find(|engine| engine.id() == name).ok_or_else(|| UnknownName {
            what: "engine",
            name: name.to_owned(),
            allowed: Self::ALL.iter().map(|engine| engine.id()).collect::<Vec<_>>().join(", "),
        })
    }
}

macro_rules! style_presets {
    ($($variant:ident => $name:literal,)+) => {
        /// A look that the API knows by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum StylePreset {
            $(#[serde(rename = $name)] $variant,)+
        }

        impl StylePreset {
            /// Every preset.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The API's name of the preset.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

style_presets! {
    Enhance => "enhance",
    Anime => "anime",
    Photographic => "photographic",
    DigitalArt => "digital-art",
    ComicBook => "comic-book",
    FantasyArt => "fantasy-art",
    LineArt => "line-art",
    AnalogFilm => "analog-film",
    NeonPunk => "neon-punk",
    Isometric => "isometric",
    LowPoly => "low-poly",
    Origami => "origami",
    ModelingCompound => "modeling-compound",
    Cinematic => "cinematic",
    ThreeDModel => "3d-model",
    PixelArt => "pixel-art",
    TileTexture => "tile-texture",
}

impl FromStr for StylePreset {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.iter().copied().find(|preset| preset.as_str() == name).ok_or_else(|| UnknownName {
            what: "style preset",
            name: name.to_owned(),
            allowed: Self::ALL.iter().map(|preset| preset.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_nearest_to_the_wanted_aspect_ratio_is_chosen() {
        let check = |width, height, expected: &str| {
            assert_eq!(Engine::Sdxl10.size_for(width, height).to_string(), expected, "{width}x{height}");
        };
        check(1920, 1080, "1344x768");
        check(1080, 1920, "768x1344");
        check(1000, 1000, "1024x1024");
        check(1024, 768, "1152x896");
        check(3, 2, "1216x832");
        check(2560, 1080, "1536x640");
        check(1, 9, "640x1536");
        check(0, 0, "1024x1024");
    }

    #[test]
    fn names_are_written_and_read_alike() {
        for engine in Engine::ALL {
            assert_eq!(engine.id().parse(), Ok(*engine));
        }
        for preset in StylePreset::ALL {
            assert_eq!(preset.as_str().parse(), Ok(*preset));
        }
        assert_eq!(
            "dall-e".parse::<Engine>().map_err(|error| error.to_string()),
            Err("engine \"dall-e\" is not known; one of stable-diffusion-xl-1024-v1-0".to_owned())
        );
    }
}
