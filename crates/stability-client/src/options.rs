//! Request options with a fixed set of values.
//!
//! Sources: the v1 specification and the public v2beta reference.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::unknown_name::UnknownName;

macro_rules! names {
    ($(#[$meta:meta])* $type:ident, $what:literal { $($(#[$variant_meta:meta])* $variant:ident => $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[allow(missing_docs, reason = "the variant names are self-explanatory")]
        #[non_exhaustive]
        pub enum $type {
            $($(#[$variant_meta])* #[serde(rename = $name)] $variant,)+
        }

        impl $type {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the API's name of this value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|known| known.as_str() == name).ok_or_else(|| UnknownName {
                    kind: $what,
                    name: name.to_owned(),
                    allowed: Self::ALL.iter().map(|known| known.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

names! {
    /// The format in which images are requested from the API.
    ///
    /// Responses are decoded in both formats, regardless of the requested one.
    #[derive(Default)]
    ResponseFormat, "response format" {
        /// As an image file, with seed and finish reason in headers. A quarter smaller than base64.
        ///
        /// Several images per request ([`TextToImage::samples`](crate::TextToImage::samples)) always come as JSON.
        #[default]
        Image => "image",
        /// As base64 in JSON.
        Json => "json",
    }
}

names! {
    /// A visual style. Supported by all engines.
    StylePreset, "style preset" {
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
}

names! {
    /// The sampler of the diffusion process. Supported by the v1 engines; if unset, the API chooses one.
    Sampler, "sampler" {
        Ddim => "DDIM",
        Ddpm => "DDPM",
        KDpmpp2M => "K_DPMPP_2M",
        KDpmpp2SAncestral => "K_DPMPP_2S_ANCESTRAL",
        KDpm2 => "K_DPM_2",
        KDpm2Ancestral => "K_DPM_2_ANCESTRAL",
        KEuler => "K_EULER",
        KEulerAncestral => "K_EULER_ANCESTRAL",
        KHeun => "K_HEUN",
        KLms => "K_LMS",
    }
}

names! {
    /// A preset of CLIP guidance. Supported by the v1 engines.
    ClipGuidance, "clip guidance preset" {
        FastBlue => "FAST_BLUE",
        FastGreen => "FAST_GREEN",
        None => "NONE",
        Simple => "SIMPLE",
        Slow => "SLOW",
        Slower => "SLOWER",
        Slowest => "SLOWEST",
    }
}

names! {
    /// The file format of the image. Supported by the v2beta engines; the v1 engines always return PNG.
    OutputFormat, "output format" {
        Png => "png",
        Jpeg => "jpeg",
        Webp => "webp",
    }
}

names! {
    /// The aspect ratio of the image, width : height. Supported by the v2beta engines.
    AspectRatio, "aspect ratio" {
        SixteenNine => "16:9",
        OneOne => "1:1",
        TwentyOneNine => "21:9",
        TwoThree => "2:3",
        ThreeTwo => "3:2",
        FourFive => "4:5",
        FiveFour => "5:4",
        NineSixteen => "9:16",
        NineTwentyOne => "9:21",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_names_round_trip() {
        for preset in StylePreset::ALL {
            assert_eq!(preset.as_str().parse(), Ok(*preset));
            assert_eq!(preset.to_string(), preset.as_str());
            assert_eq!(serde_json::to_value(preset).expect("JSON"), serde_json::json!(preset.as_str()));
            let read: StylePreset = serde_json::from_value(serde_json::json!(preset.as_str())).expect("a preset");
            assert_eq!(read, *preset);
        }
        for sampler in Sampler::ALL {
            assert_eq!(sampler.as_str().parse(), Ok(*sampler));
        }
        for guidance in ClipGuidance::ALL {
            assert_eq!(guidance.as_str().parse(), Ok(*guidance));
        }
        for format in OutputFormat::ALL {
            assert_eq!(format.as_str().parse(), Ok(*format));
        }
        assert_eq!(
            "gif".parse::<OutputFormat>().map_err(|error| error.to_string()),
            Err("unknown output format \"gif\"; expected one of png, jpeg, webp".to_owned())
        );
    }
}
