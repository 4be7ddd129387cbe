//! Names that requests choose from.
//!
//! Sources: the v1 specification and the public v2beta reference.

use std::str::FromStr;

use crate::engine::UnknownName;

macro_rules! names {
    ($(#[$meta:meta])* $type:ident, $what:literal { $($variant:ident => $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "the names say it")]
        pub enum $type {
            $($variant,)+
        }

        impl $type {
            /// Every one there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The API's name of it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, UnknownName> {
                Self::ALL.iter().copied().find(|known| known.as_str() == name).ok_or_else(|| UnknownName {
                    what: $what,
                    name: name.to_owned(),
                    allowed: Self::ALL.iter().map(|known| known.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

/// How the API is asked to send a picture. What comes is read either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AnswerForm {
    /// As it is, with its facts in headers: a quarter smaller on the wire, and nothing to decode.
    #[default]
    Image,
    /// In JSON, as base64.
    Json,
}

names! {
    /// A look that the API knows by name. Taken by the engines of the v1 API and by `core`.
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
    /// How noise becomes a picture. Taken by the engines of the v1 API; without one the API chooses.
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
    /// Guidance by CLIP. Taken by the engines of the v1 API.
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
    /// How the picture is encoded. The engines of the v1 API always make PNG.
    OutputFormat, "output format" {
        Png => "png",
        Jpeg => "jpeg",
        Webp => "webp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_and_read_alike() {
        for preset in StylePreset::ALL {
            assert_eq!(preset.as_str().parse(), Ok(*preset));
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
            Err("output format \"gif\" is not known; one of png, jpeg, webp".to_owned())
        );
    }
}
