//! Paints landscapes: a sky, a sun, and a foreground chosen by words in the prompt.

use super::canvas::{Canvas, Colour};
use super::noise::{self, SplitMix64};

struct Palette {
    zenith: Colour,
    horizon: Colour,
    sun: Colour,
    far: Colour,
    near: Colour,
}

const fn palette(zenith: u32, horizon: u32, sun: u32, far: u32, near: u32) -> Palette {
    Palette {
        zenith: Colour::from_hex(zenith),
        horizon: Colour::from_hex(horizon),
        sun: Colour::from_hex(sun),
        far: Colour::from_hex(far),
        near: Colour::from_hex(near),
    }
}

const PALETTES: [Palette; 7] = [
    palette(0x002B_3A67, 0x00F6_A66B, 0x00FF_E3A8, 0x00A8_6F7B, 0x001F_1B2E),
    palette(0x0041_7FB8, 0x00DC_EEF5, 0x00FF_FBE8, 0x0097_B4C6, 0x0022_4038),
    palette(0x0033_2452, 0x00EF_8A8A, 0x00FF_D6B0, 0x0093_5F86, 0x0018_1226),
    palette(0x001B_5E6E, 0x00F3_D9A0, 0x00FF_F6D8, 0x0071_9A92, 0x0012_2B2C),
    palette(0x000C_1230, 0x0044_5C93, 0x00EE_F2FF, 0x0039_4A78, 0x0008_0C1C),
    palette(0x006A_88A8, 0x00F9_E0D0, 0x00FF_F3E4, 0x00AE_9FA6, 0x0038_3540),
    palette(0x0020_4B57, 0x00F2_B880, 0x00FF_E9C0, 0x0060_7F70, 0x0017_2A1E),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SceneKind {
    Mountains,
    City,
    Water,
    Dunes,
    Forest,
    Space,
}

fn scene_kind(prompt: &str) -> SceneKind {
    let prompt = prompt.to_lowercase();
    let contains_any = |words: &[&str]| words.iter().any(|word| prompt.contains(word));
    if contains_any(&["city", "street", "skyline", "building", "town", "tower"]) {
        SceneKind::City
    } else if contains_any(&["space", "planet", "galaxy", "cosmos", "nebula"]) {
        SceneKind::Space
    } else if contains_any(&["sea", "ocean", "beach", "lake", "island", "harbo", "river", "lighthouse"]) {
        SceneKind::Water
    } else if contains_any(&["desert", "dune", "sand"]) {
        SceneKind::Dunes
    } else if contains_any(&["forest", "wood", "tree", "jungle", "garden"]) {
        SceneKind::Forest
    } else {
        SceneKind::Mountains
    }
}

/// Positions and sizes, in pixels.
struct Layout<'a> {
    width: f32,
    height: f32,
    sun: (f32, f32),
    sun_radius: f32,
    horizon: f32,
    salt: u32,
    palette: &'a Palette,
}

/// Paints the whole canvas.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "image dimensions are small"
)]
pub(super) fn paint(canvas: &mut Canvas, prompt: &str, mut rng: SplitMix64) {
    let kind = scene_kind(prompt);
    let (width, height) = (canvas.width as f32, canvas.height as f32);
    let palette = if kind == SceneKind::Space { &PALETTES[4] } else { &PALETTES[rng.below(PALETTES.len())] };
    let horizon = height * rng.between(0.52, 0.64);
    let layout = Layout {
        width,
        height,
        sun: (width * rng.between(0.18, 0.82), horizon - height * rng.between(0.08, 0.36)),
        sun_radius: height * if kind == SceneKind::Space { rng.between(0.16, 0.24) } else { rng.between(0.035, 0.06) },
        horizon,
        salt: u32::try_from(rng.below(1 << 20)).expect("20 bits"),
        palette,
    };
    let layers = build_layers(kind, &layout, &mut rng);
    for x in 0..canvas.width {
        let tops: Vec<f32> = layers.iter().map(|layer| layer.top(&layout, x as f32)).collect();
        for y in 0..canvas.height {
            let (fx, fy) = (x as f32, y as f32);
            let mut colour = sky_colour(&layout, kind, fx, fy);
            if kind == SceneKind::Water && fy > layout.horizon {
                colour = water_colour(&layout, fx, fy);
            }
            for (layer, top) in layers.iter().zip(&tops) {
                // In a water scene the layer is the far shore, which ends at the horizon.
                if fy >= *top && !(kind == SceneKind::Water && fy > layout.horizon) {
                    colour = layer.colour(&layout, fx, fy, *top);
                }
            }
            // Invisible noise of 1% prevents banding in gradients.
            canvas.set_pixel(
                x,
                y,
                colour.scale_brightness(1.0 + (noise::value_at(x as i32, y as i32, layout.salt) - 0.5) * 0.02),
            );
        }
    }
}

fn sky_colour(layout: &Layout, ground: SceneKind, x: f32, y: f32) -> Colour {
    let up = 1.0 - (y / layout.horizon).min(1.0);
    let mut colour = layout.palette.horizon.mix(layout.palette.zenith, up.powf(0.75));
    let distance = ((x - layout.sun.0).powi(2) + (y - layout.sun.1).powi(2)).sqrt();
    if ground == SceneKind::Space {
        return space_colour(layout, x, y, distance);
    }
    colour = colour.mix(layout.palette.sun, 0.75 * (-distance / (layout.height * 0.22)).exp());
    colour = colour.mix(layout.palette.sun, (layout.sun_radius + 1.0 - distance).clamp(0.0, 1.0));
    let cloud = noise::fractal_noise(x / layout.width * 5.0, y / layout.height * 11.0, layout.salt, 5);
    colour.mix(layout.palette.sun, ((cloud - 0.54) * 2.4).clamp(0.0, 0.55) * (0.35 + 0.65 * up))
}

#[expect(clippy::cast_possible_truncation, reason = "coordinates are small")]
fn space_colour(frame: &Layout, x: f32, y: f32, distance: f32) -> Colour {
    let cloud = noise::fractal_noise(x / frame.width * 4.0, y / frame.height * 3.0, frame.salt + 9, 6);
    let mut colour = Colour::from_hex(0x0006_0817).mix(Colour::from_hex(0x0066_2F7A), (cloud - 0.42).max(0.0) * 1.8);
    let star = noise::value_at(x as i32 / 2, y as i32 / 2, frame.salt + 77);
    if star > 0.9975 {
        colour = colour.mix(Colour::from_hex(0x00FF_FFFF), (star - 0.9975) * 400.0);
    }
    let inside = (frame.sun_radius - distance).clamp(0.0, 1.0);
    let bands = noise::fractal_noise(x / frame.width * 3.0, y / frame.height * 18.0, frame.salt + 5, 4);
    let shade = (1.15 - ((x - frame.sun.0) * 0.7 + (y - frame.sun.1) * 0.7) / frame.sun_radius * 0.75).clamp(0.05, 1.3);
    let planet = Colour::from_hex(0x00C9_8B5B).mix(Colour::from_hex(0x00F4_DFC0), bands).scale_brightness(shade);
    colour.mix(planet, inside)
}

/// The mirrored sky, darker, with the sun's reflection on the waves.
fn water_colour(layout: &Layout, x: f32, y: f32) -> Colour {
    let depth = (y - layout.horizon) / (layout.height - layout.horizon);
    let wave =
        noise::fractal_noise(x / layout.width * 8.0, y / layout.height * (90.0 - 50.0 * depth), layout.salt + 3, 4)
            - 0.5;
    let mirrored = layout.horizon - (y - layout.horizon) * 0.8 + wave * 50.0 * (0.3 + depth);
    let base = sky_colour(layout, SceneKind::Water, x + wave * 40.0, mirrored.max(0.0))
        .mix(layout.palette.zenith.scale_brightness(0.5), 0.3 + 0.3 * depth);
    let path = (-((x - layout.sun.0) / (layout.width * (0.02 + 0.08 * depth))).powi(2)).exp();
    base.mix(layout.palette.sun, (path * (wave * 3.4 + 0.35)).clamp(0.0, 0.8)).scale_brightness(1.0 + wave * 0.35)
}

/// A silhouette across the image; later layers cover earlier ones.
struct Layer {
    kind: SceneKind,
    base: f32,
    rise: f32,
    scale: f32,
    /// 0 is far, 1 is near.
    nearness: f32,
    salt: u32,
}

#[expect(clippy::cast_precision_loss, reason = "at most five layers")]
fn build_layers(ground: SceneKind, frame: &Layout, dice: &mut SplitMix64) -> Vec<Layer> {
    let count: u32 = match ground {
        SceneKind::Mountains | SceneKind::Forest => 5,
        SceneKind::City | SceneKind::Dunes => 4,
        SceneKind::Water => 1,
        SceneKind::Space => 0,
    };
    (0..count)
        .map(|index| {
            let tall = if ground == SceneKind::Mountains { 1.5 } else { 1.0 };
            let nearness = if count == 1 { 0.25 } else { index as f32 / (count - 1) as f32 };
            let below = if ground == SceneKind::Water { 0.0 } else { 0.02 + nearness * 0.26 };
            Layer {
                kind: ground,
                base: frame.horizon + frame.height * below,
                rise: tall * frame.height * dice.between(0.16, 0.24) * (1.0 - 0.45 * nearness),
                scale: dice.between(2.2, 3.4) * (1.0 + nearness),
                nearness,
                salt: frame.salt + 101 * (index + 1),
            }
        })
        .collect()
}

impl Layer {
    /// Upper edge of the silhouette at this column.
    #[expect(clippy::cast_possible_truncation, reason = "coordinates are small")]
    fn top(&self, layout: &Layout, x: f32) -> f32 {
        let along = x / layout.width * self.scale;
        match self.kind {
            SceneKind::City => {
                let plot = along * 9.0;
                let tall = noise::value_at(plot.floor() as i32, 1, self.salt).powi(2);
                let gap = plot.fract() > 0.94;
                self.base - if gap { 0.0 } else { self.rise * (0.35 + 1.5 * tall) }
            }
            SceneKind::Dunes => {
                let wave = (along * 2.2 + noise::fractal_noise(along, 0.5, self.salt, 2) * 3.0).sin() * 0.5 + 0.5;
                self.base - self.rise * 0.55 * wave
            }
            SceneKind::Forest => {
                let ridge = noise::fractal_noise(along, 0.5, self.salt, 4);
                let tree = along * (26.0 - 12.0 * self.nearness);
                let spire = 1.0 - (tree.fract() - 0.5).abs() * 2.0;
                let tall = 0.4 + 0.6 * noise::value_at(tree.floor() as i32, 2, self.salt);
                self.base - self.rise * (0.75 * ridge + 0.42 * spire * tall * (0.4 + self.nearness))
            }
            SceneKind::Mountains | SceneKind::Water | SceneKind::Space => {
                let ridge = noise::fractal_noise(along, 0.5, self.salt, 6);
                let peak = 1.0 - (ridge - 0.5).abs() * 2.0;
                let low = if self.kind == SceneKind::Water { 0.5 * (ridge - 0.35) } else { 0.3 * ridge + 0.75 * peak };
                self.base - self.rise * low
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "coordinates are small")]
    fn colour(&self, layout: &Layout, x: f32, y: f32, top: f32) -> Colour {
        let base = layout.palette.far.mix(layout.palette.near, self.nearness);
        // A layer fades into haze towards its lower edge, which separates it from the next layer.
        let haze = ((y - top) / (layout.height * 0.3)).min(1.0) * 0.4 * (1.0 - self.nearness);
        let texture = noise::fractal_noise(x / layout.width * 40.0, y / layout.height * 60.0, self.salt + 7, 4) - 0.5;
        let mut colour =
            base.mix(layout.palette.horizon, haze).scale_brightness(1.0 + texture * (0.3 + 0.25 * self.nearness));
        match self.kind {
            SceneKind::City => {
                let (column, row) = ((x / 9.0) as i32, ((y - top) / 13.0) as i32);
                let in_pane = (x / 9.0).fract() > 0.4 && ((y - top) / 13.0).fract() > 0.5;
                if in_pane && row > 0 && noise::value_at(column, row, self.salt) > 0.66 - 0.12 * self.nearness {
                    colour = colour.mix(layout.palette.sun, 0.3 + 0.5 * self.nearness);
                }
            }
            SceneKind::Mountains if self.nearness < 0.6 => {
                let snow = 1.0 - (y - top) / (layout.height * 0.055) + texture * 1.6;
                colour = colour.mix(layout.palette.sun, (snow * 0.8).clamp(0.0, 0.55));
            }
            SceneKind::Dunes => {
                let ripple = ((y - top) * 0.5 + texture * 24.0).sin() * 0.04;
                colour =
                    colour.mix(layout.palette.horizon, 0.25 * (1.0 - self.nearness)).scale_brightness(1.0 + ripple);
            }
            _ => {}
        }
        colour
    }
}
