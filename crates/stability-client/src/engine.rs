//! The engines, and what each of them takes.
//!
//! Sources: the v1 specification (names, sizes, defaults), the public v2beta reference (names, aspect ratios).

use std::fmt;
use std::str::FromStr;

use crate::frame::{AspectRatio, Frame, Size};

/// What makes the picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// SDXL 1.0 on the v1 API: nine sizes of about one megapixel.
    #[default]
    Sdxl10,
    /// Stable Diffusion 1.6 on the v1 API: sides of 320 to 1536 pixels in steps of 64.
    Sd16,
    /// Stable Image Core on the v2beta API: about 1.5 megapixels.
    Core,
    /// Stable Image Ultra on the v2beta API: about one megapixel.
    Ultra,
    /// Stable Diffusion 3.5 Large on the v2beta API.
    Sd35Large,
    /// Stable Diffusion 3.5 Large Turbo on the v2beta API.
    Sd35LargeTurbo,
    /// Stable Diffusion 3.5 Medium on the v2beta API.
    Sd35Medium,
    /// Stable Diffusion 3.5 Flash on the v2beta API.
    Sd35Flash,
}

/// Which of Stability's APIs an engine stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// `/v1/generation/{engine}/text-to-image`: JSON in.
    V1,
    /// `/v2beta/stable-image/generate/{service}`: a multipart form in.
    V2Beta,
}

/// What a request may ask for besides prompt, frame and seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knob {
    PromptWeights,
    CfgScale,
    Steps,
    Samples,
    Sampler,
    ClipGuidance,
    StylePreset,
    OutputFormat,
}

impl Knob {
    /// The API's name of the field.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::PromptWeights => "text_prompts",
            Self::CfgScale => "cfg_scale",
            Self::Steps => "steps",
            Self::Samples => "samples",
            Self::Sampler => "sampler",
            Self::ClipGuidance => "clip_guidance_preset",
            Self::StylePreset => "style_preset",
            Self::OutputFormat => "output_format",
        }
    }
}

impl Engine {
    /// Every engine this client can use.
    pub const ALL: &'static [Self] = &[
        Self::Sdxl10,
        Self::Sd16,
        Self::Core,
        Self::Ultra,
        Self::Sd35Large,
        Self::Sd35LargeTurbo,
        Self::Sd35Medium,
        Self::Sd35Flash,
    ];

    /// The API's name of the engine; of the v2beta family, that of the service or of its model.
    pub fn id(self) -> &'static str {
        match self {
            Self::Sdxl10 => "stable-diffusion-xl-1024-v1-0",
            Self::Sd16 => "stable-diffusion-v1-6",
            Self::Core => "core",
            Self::Ultra => "ultra",
            Self::Sd35Large => "sd3.5-large",
            Self::Sd35LargeTurbo => "sd3.5-large-turbo",
            Self::Sd35Medium => "sd3.5-medium",
            Self::Sd35Flash => "sd3.5-flash",
        }
    }

    /// The API it stands behind.
    pub fn family(self) -> Family {
        match self {
            Self::Sdxl10 | Self::Sd16 => Family::V1,
            Self::Core | Self::Ultra | Self::Sd35Large | Self::Sd35LargeTurbo | Self::Sd35Medium | Self::Sd35Flash => {
                Family::V2Beta
            }
        }
    }

    /// The `model` field, where several models share a service.
    pub(crate) fn model(self) -> Option<&'static str> {
        match self {
            Self::Sdxl10 | Self::Sd16 | Self::Core | Self::Ultra => None,
            Self::Sd35Large | Self::Sd35LargeTurbo | Self::Sd35Medium | Self::Sd35Flash => Some(self.id()),
        }
    }

    /// Where requests for it go, below the base URL.
    pub(crate) fn path(self) -> String {
        match self {
            Self::Sdxl10 | Self::Sd16 => format!("v1/generation/{}/text-to-image", self.id()),
            Self::Core | Self::Ultra => format!("v2beta/stable-image/generate/{}", self.id()),
            Self::Sd35Large | Self::Sd35LargeTurbo | Self::Sd35Medium | Self::Sd35Flash => {
                "v2beta/stable-image/generate/sd3".to_owned()
            }
        }
    }

    /// The most characters of one prompt.
    pub fn max_prompt_chars(self) -> usize {
        match self.family() {
            Family::V1 => 2_000,
            Family::V2Beta => 10_000,
        }
    }

    /// The largest seed.
    pub fn max_seed(self) -> u32 {
        match self.family() {
            Family::V1 => u32::MAX,
            Family::V2Beta => u32::MAX - 1,
        }
    }

    pub(crate) fn takes(self, knob: Knob) -> bool {
        match knob {
            Knob::PromptWeights | Knob::CfgScale | Knob::Steps | Knob::Samples | Knob::Sampler | Knob::ClipGuidance => {
                self.family() == Family::V1
            }
            Knob::StylePreset => self.family() == Family::V1 || self == Self::Core,
            Knob::OutputFormat => self.family() == Family::V2Beta,
        }
    }

    /// The frame whose aspect ratio is nearest to `width` : `height` among those that the engine takes. Zeros count as ones.
    pub fn frame_for(self, width: u32, height: u32) -> Frame {
        let wanted = Size { width: width.max(1), height: height.max(1) };
        match self {
            Self::Sdxl10 => Frame::Size(Size::nearest_of_sdxl(wanted)),
            Self::Sd16 => Frame::Size(Size::nearest_of_sd16(wanted)),
            _ => Frame::AspectRatio(AspectRatio::nearest(wanted)),
        }
    }

    /// Whether the engine takes a frame; if not, what it takes.
    pub(crate) fn check_frame(self, frame: Frame) -> Result<(), String> {
        match (self, frame) {
            (Self::Sdxl10, Frame::Size(size)) if size.is_of_sdxl() => Ok(()),
            (Self::Sdxl10, _) => Err(format!("one of {}", Size::list_of_sdxl())),
            (Self::Sd16, Frame::Size(size)) if size.is_of_sd16() => Ok(()),
            (Self::Sd16, _) => Err("sides of 320 to 1536 pixels in steps of 64".to_owned()),
            (_, Frame::AspectRatio(_)) => Ok(()),
            (_, Frame::Size(_)) => Err(format!("an aspect ratio: one of {}", AspectRatio::list())),
        }
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
    pub(crate) what: &'static str,
    pub(crate) name: String,
    pub(crate) allowed: String,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_nearest_to_the_wanted_aspect_ratio_is_chosen() {
        let check = |engine: Engine, width, height, expected: &str| {
            let frame = engine.frame_for(width, height);
            assert_eq!(frame.to_string(), expected, "{engine} {width}x{height}");
            assert_eq!(engine.check_frame(frame), Ok(()), "{engine} {width}x{height}");
        };
        check(Engine::Sdxl10, 1920, 1080, "1344x768");
        check(Engine::Sdxl10, 1080, 1920, "768x1344");
        check(Engine::Sdxl10, 1000, 1000, "1024x1024");
        check(Engine::Sdxl10, 1024, 768, "1152x896");
        check(Engine::Sdxl10, 3, 2, "1216x832");
        check(Engine::Sdxl10, 2560, 1080, "1536x640");
        check(Engine::Sdxl10, 1, 9, "640x1536");
        check(Engine::Sdxl10, 0, 0, "1024x1024");
        check(Engine::Sd16, 1920, 1080, "1024x576");
        check(Engine::Sd16, 1, 1, "1024x1024");
        check(Engine::Sd16, 9, 1, "1536x320");
        for engine in [Engine::Core, Engine::Ultra, Engine::Sd35Flash] {
            check(engine, 1920, 1080, "16:9");
            check(engine, 1080, 1920, "9:16");
            check(engine, 4, 5, "4:5");
            check(engine, 9, 1, "21:9");
        }
    }

    #[test]
    fn a_frame_of_another_engine_is_refused_with_what_is_taken() {
        let size = |width, height| Frame::Size(Size { width, height });
        let check = |engine: Engine, frame: Frame, expected: &str| {
            assert_eq!(engine.check_frame(frame), Err(expected.to_owned()), "{engine} {frame}");
        };
        let of_sdxl =
            "one of 1024x1024, 1152x896, 1216x832, 1344x768, 1536x640, 640x1536, 768x1344, 832x1216, 896x1152";
        check(Engine::Sdxl10, size(1920, 1080), of_sdxl);
        check(Engine::Sdxl10, Frame::AspectRatio(AspectRatio::SixteenNine), of_sdxl);
        for (width, height) in [(1345, 768), (256, 768), (1600, 768)] {
            check(Engine::Sd16, size(width, height), "sides of 320 to 1536 pixels in steps of 64");
        }
        let ratios = "an aspect ratio: one of 16:9, 1:1, 21:9, 2:3, 3:2, 4:5, 5:4, 9:16, 9:21";
        check(Engine::Core, size(1024, 1024), ratios);
    }

    #[test]
    fn names_are_written_and_read_alike() {
        for engine in Engine::ALL {
            assert_eq!(engine.id().parse(), Ok(*engine));
        }
        let error = "dall-e".parse::<Engine>().expect_err("unknown").to_string();
        assert!(error.starts_with("engine \"dall-e\" is not known; one of stable-diffusion-xl-1024-v1-0, "), "{error}");
    }
}
