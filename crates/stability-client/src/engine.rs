//! The engines, their limits and the options that each of them supports.
//!
//! Sources: the v1 specification (names, sizes, defaults) and the public v2beta reference (names, aspect ratios).

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use arrayvec::ArrayString;
use serde::{Deserialize, Serialize};

use crate::credits::Credits;
use crate::dimensions::{Dimensions, Size};
use crate::error::InvalidRequest;
use crate::options::{AspectRatio, OutputFormat};
use crate::unknown_name::UnknownName;

/// The range of `cfg_scale` of SDXL 1.0. Source: v1 specification. [`Engine::cfg_scale_range`] has that of each engine.
pub const CFG_SCALE: RangeInclusive<f64> = 0.0..=35.0;

/// The model, or service, that generates an image.
///
/// In text and in serde formats an engine is its [`id`](Self::id). [`FromStr`] accepts the names of [`Engine::ALL`]
/// only, so that a typing error is found; `Deserialize` turns any other name into [`Engine::Other`], so that what a
/// later version has written can be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum Engine {
    /// SDXL 1.0 on the v1 API: nine sizes of about one megapixel.
    #[default]
    Sdxl10,
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
    /// An engine that this version of the client does not know, by the API's name.
    ///
    /// A name that begins with `stable-diffusion-` belongs to the v1 API; one that begins with `sd` and a digit, such
    /// as `sd4-large`, is a model of the v2beta service `sd3`; any other is a v2beta service of its own. Options are
    /// checked against the widest limits of that API version, and the price is not known.
    Other(EngineName),
}

/// The name of an engine that this version of the client does not know: 1 to 64 letters, digits, `-`, `_` and `.`, not
/// beginning with a dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EngineName(ArrayString<64>);

impl EngineName {
    /// Checks a name, which becomes a part of the request's path.
    fn new(name: &str) -> Result<Self, InvalidRequest> {
        let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        ArrayString::from(name)
            .ok()
            .filter(|name| !name.is_empty() && !name.starts_with('.') && name.chars().all(is_valid))
            .map(Self)
            .ok_or_else(|| {
                let allowed = "1 to 64 letters, digits, '-', '_' and '.', not beginning with '.'";
                InvalidRequest::new("engine", format_args!("{name:?}"), allowed)
            })
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The version of Stability AI's API that serves an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ApiVersion {
    /// `/v1/generation/{engine}/text-to-image`; requests are JSON.
    V1,
    /// `/v2beta/stable-image/generate/{service}`; requests are multipart forms.
    V2Beta,
}

/// A request option that not every engine supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestOption {
    PromptWeights,
    CfgScale,
    Steps,
    Samples,
    Sampler,
    ClipGuidance,
    StylePreset,
    OutputFormat,
}

impl RequestOption {
    /// The API's name of the request field.
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
    /// All engines that this client knows.
    pub const ALL: &'static [Self] = &[
        Self::Sdxl10,
        Self::Core,
        Self::Ultra,
        Self::Sd35Large,
        Self::Sd35LargeTurbo,
        Self::Sd35Medium,
        Self::Sd35Flash,
    ];

    /// Returns the engine of this name: [`Engine::Other`] if this version does not know it.
    ///
    /// ```
    /// use stability_client::{Engine, TextToImage};
    ///
    /// let engine = Engine::other("sd4-large")?;
    /// let request = TextToImage::new(engine, engine.dimensions_for(1920, 1080), "A lighthouse at dusk")?;
    /// # Ok::<_, stability_client::InvalidRequest>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] if the name cannot be that of an engine.
    pub fn other(name: &str) -> Result<Self, InvalidRequest> {
        name.parse().or_else(|_: UnknownName| EngineName::new(name).map(Self::Other))
    }

    /// Returns the API's name of the engine; for v2beta engines, the name of the service or of its model.
    pub fn id(&self) -> &str {
        match self {
            Self::Sdxl10 => "stable-diffusion-xl-1024-v1-0",
            Self::Core => "core",
            Self::Ultra => "ultra",
            Self::Sd35Large => "sd3.5-large",
            Self::Sd35LargeTurbo => "sd3.5-large-turbo",
            Self::Sd35Medium => "sd3.5-medium",
            Self::Sd35Flash => "sd3.5-flash",
            Self::Other(name) => name.as_str(),
        }
    }

    /// Returns the version of the API that serves the engine.
    pub fn api_version(&self) -> ApiVersion {
        match self {
            Self::Sdxl10 => ApiVersion::V1,
            Self::Core | Self::Ultra | Self::Sd35Large | Self::Sd35LargeTurbo | Self::Sd35Medium | Self::Sd35Flash => {
                ApiVersion::V2Beta
            }
            Self::Other(name) if name.as_str().starts_with("stable-diffusion-") => ApiVersion::V1,
            Self::Other(_) => ApiVersion::V2Beta,
        }
    }

    /// Value of the `model` field, for services with several models.
    pub(crate) fn model(&self) -> Option<&str> {
        match self {
            Self::Sdxl10 | Self::Core | Self::Ultra => None,
            Self::Other(name) => match name.as_str().as_bytes() {
                [b's', b'd', b'0'..=b'9', ..] => Some(name.as_str()),
                _ => None,
            },
            Self::Sd35Large | Self::Sd35LargeTurbo | Self::Sd35Medium | Self::Sd35Flash => Some(self.id()),
        }
    }

    /// Path of its requests, relative to the base URL.
    pub(crate) fn path(&self) -> String {
        match (self.api_version(), self.model()) {
            (ApiVersion::V1, _) => format!("v1/generation/{}/text-to-image", self.id()),
            (ApiVersion::V2Beta, None) => format!("v2beta/stable-image/generate/{}", self.id()),
            (ApiVersion::V2Beta, Some(_)) => "v2beta/stable-image/generate/sd3".to_owned(),
        }
    }

    /// Returns the maximum length of one prompt, in characters.
    pub fn max_prompt_chars(&self) -> usize {
        match self.api_version() {
            ApiVersion::V1 => 2_000,
            ApiVersion::V2Beta => 10_000,
        }
    }

    /// Returns the largest seed that the engine accepts.
    pub fn max_seed(&self) -> u32 {
        match self.api_version() {
            ApiVersion::V1 => u32::MAX,
            ApiVersion::V2Beta => u32::MAX - 1,
        }
    }

    /// Whether the engine takes this option. Sources: the v1 specification and the public v2beta reference.
    pub(crate) fn supports(&self, option: RequestOption) -> bool {
        let is_v1 = self.api_version() == ApiVersion::V1;
        match option {
            RequestOption::PromptWeights
            | RequestOption::Steps
            | RequestOption::Samples
            | RequestOption::Sampler
            | RequestOption::ClipGuidance => is_v1,
            RequestOption::CfgScale => self.cfg_scale_range().is_some(),
            RequestOption::StylePreset => true,
            RequestOption::OutputFormat => !is_v1,
        }
    }

    /// Returns the range of `cfg_scale`; `None` if the engine does not take it.
    pub fn cfg_scale_range(&self) -> Option<RangeInclusive<f64>> {
        match self.api_version() {
            ApiVersion::V1 => Some(CFG_SCALE),
            ApiVersion::V2Beta if matches!(self, Self::Core | Self::Ultra) => None,
            ApiVersion::V2Beta => Some(1.0..=10.0),
        }
    }

    /// Returns the file formats that can be chosen with
    /// [`TextToImage::output_format`](crate::TextToImage::output_format).
    pub fn output_formats(&self) -> &'static [OutputFormat] {
        match self {
            _ if self.api_version() == ApiVersion::V1 => &[],
            Self::Core | Self::Ultra | Self::Other(_) => &[OutputFormat::Png, OutputFormat::Jpeg, OutputFormat::Webp],
            _ => &[OutputFormat::Png, OutputFormat::Jpeg],
        }
    }

    /// Returns the price of one image; `None` for [`Engine::Other`]. Source: Stability's pricing page.
    ///
    /// SDXL 1.0 is priced by steps and size, 0.2 to 0.9 credits; the result is an upper bound for all of them.
    pub fn price(&self) -> Option<Credits> {
        let tenths = match self {
            Self::Sdxl10 => 20,
            Self::Core => 30,
            Self::Ultra => 80,
            Self::Sd35Large => 65,
            Self::Sd35LargeTurbo => 40,
            Self::Sd35Medium => 35,
            Self::Sd35Flash => 25,
            Self::Other(_) => return None,
        };
        Some(Credits::from_tenths(tenths))
    }

    /// Whether [`FastUpscale`](crate::FastUpscale) takes images of this engine: those of `core` have too many pixels.
    ///
    /// Of [`Engine::Other`] it is not known, and counts as yes.
    pub fn fits_fast_upscaler(&self) -> bool {
        *self != Self::Core
    }

    /// Returns the dimensions supported by the engine whose aspect ratio is nearest to `width` : `height`.
    ///
    /// A zero counts as one.
    pub fn dimensions_for(&self, width: u32, height: u32) -> Dimensions {
        let wanted = Size { width: width.max(1), height: height.max(1) };
        match self.api_version() {
            ApiVersion::V1 => Dimensions::Size(Size::nearest_sdxl(wanted)),
            ApiVersion::V2Beta => Dimensions::AspectRatio(AspectRatio::nearest(wanted)),
        }
    }

    /// Checks that the engine supports these dimensions; the error text names the supported ones.
    pub(crate) fn check_dimensions(&self, dimensions: Dimensions) -> Result<(), String> {
        match (self.api_version(), dimensions) {
            (ApiVersion::V1, Dimensions::Size(size)) if size.is_valid_for_sdxl() || *self != Self::Sdxl10 => Ok(()),
            (ApiVersion::V1, _) => Err(format!("one of {}", Size::format_sdxl_sizes())),
            (ApiVersion::V2Beta, Dimensions::AspectRatio(_)) => Ok(()),
            (ApiVersion::V2Beta, Dimensions::Size(_)) => {
                Err(format!("an aspect ratio: one of {}", AspectRatio::format_all()))
            }
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl FromStr for Engine {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Self::ALL.iter().find(|engine| engine.id() == name).copied().ok_or_else(|| UnknownName {
            kind: "engine",
            name: name.to_owned(),
            allowed: Self::ALL.iter().map(Self::id).collect::<Vec<_>>().join(", "),
        })
    }
}

impl TryFrom<String> for Engine {
    type Error = InvalidRequest;

    fn try_from(name: String) -> Result<Self, InvalidRequest> {
        Self::other(&name)
    }
}

impl From<Engine> for String {
    fn from(engine: Engine) -> Self {
        engine.id().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_nearest_to_the_wanted_aspect_ratio_are_chosen() {
        let check = |engine: Engine, width, height, expected: &str| {
            let frame = engine.dimensions_for(width, height);
            assert_eq!(frame.to_string(), expected, "{engine} {width}x{height}");
            assert_eq!(engine.check_dimensions(frame), Ok(()), "{engine} {width}x{height}");
        };
        check(Engine::Sdxl10, 1920, 1080, "1344x768");
        check(Engine::Sdxl10, 1080, 1920, "768x1344");
        check(Engine::Sdxl10, 1000, 1000, "1024x1024");
        check(Engine::Sdxl10, 1024, 768, "1152x896");
        check(Engine::Sdxl10, 3, 2, "1216x832");
        check(Engine::Sdxl10, 2560, 1080, "1536x640");
        check(Engine::Sdxl10, 1, 9, "640x1536");
        check(Engine::Sdxl10, 0, 0, "1024x1024");
        for engine in [Engine::Core, Engine::Ultra, Engine::Sd35Flash] {
            check(engine, 1920, 1080, "16:9");
            check(engine, 1080, 1920, "9:16");
            check(engine, 4, 5, "4:5");
            check(engine, 9, 1, "21:9");
        }
    }

    #[test]
    fn unsupported_dimensions_are_refused_with_the_allowed_values() {
        let size = |width, height| Dimensions::Size(Size { width, height });
        let check = |engine: Engine, frame: Dimensions, expected: &str| {
            assert_eq!(engine.check_dimensions(frame), Err(expected.to_owned()), "{engine} {frame}");
        };
        let of_sdxl =
            "one of 1024x1024, 1152x896, 1216x832, 1344x768, 1536x640, 640x1536, 768x1344, 832x1216, 896x1152";
        check(Engine::Sdxl10, size(1920, 1080), of_sdxl);
        check(Engine::Sdxl10, Dimensions::AspectRatio(AspectRatio::SixteenNine), of_sdxl);
        let ratios = "an aspect ratio: one of 16:9, 1:1, 21:9, 2:3, 3:2, 4:5, 5:4, 9:16, 9:21";
        check(Engine::Core, size(1024, 1024), ratios);
    }

    #[test]
    fn engine_ids_round_trip() {
        for engine in Engine::ALL {
            assert_eq!(engine.id().parse(), Ok(*engine));
        }
        for engine in Engine::ALL.iter().copied().chain([Engine::other("sd4-large").expect("a valid name")]) {
            let json = serde_json::to_value(engine).expect("JSON");
            assert_eq!(json, engine.id());
            assert_eq!(serde_json::from_value::<Engine>(json).expect("an engine"), engine);
        }
        let error = "dall-e".parse::<Engine>().expect_err("the engine is unknown").to_string();
        assert!(
            error.starts_with("unknown engine \"dall-e\"; expected one of stable-diffusion-xl-1024-v1-0, "),
            "{error}"
        );
    }

    #[test]
    fn unknown_engine_follows_its_name() {
        let check = |name: &str, path: &str, model: Option<&str>| {
            let engine = Engine::other(name).expect("a valid name");
            assert_eq!((engine.path().as_str(), engine.model(), engine.price()), (path, model, None), "{name}");
        };
        check("stable-diffusion-xl-2", "v1/generation/stable-diffusion-xl-2/text-to-image", None);
        check("sd4-large", "v2beta/stable-image/generate/sd3", Some("sd4-large"));
        assert_eq!(Engine::other("core"), Ok(Engine::Core));
        check("core-2", "v2beta/stable-image/generate/core-2", None);
        let too_long = "x".repeat(65);
        for name in ["", "..", ".core", "a/b", "a b", "core?x=1", "größer", &too_long] {
            let error = Engine::other(name).expect_err(name).to_string();
            assert!(error.starts_with(&format!("engine: {name:?} is not allowed; 1 to 64 letters")), "{error}");
            assert!(serde_json::from_value::<Engine>(serde_json::json!(name)).is_err(), "{name}");
        }
    }
}
