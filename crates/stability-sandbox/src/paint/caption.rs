//! Draws the prompt at the bottom of the image.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::canvas::{Canvas, Colour};

const BACKGROUND: Colour = Colour::from_hex(0x000B_0E14);
const TEXT_COLOUR: Colour = Colour::from_hex(0x00F4_EFE6);
const MARGIN: usize = 36;
const MAX_LINES: usize = 3;

/// Draws up to three lines of the prompt, and `note` in a smaller font below them.
#[expect(clippy::cast_precision_loss, reason = "image dimensions are small")]
pub(super) fn draw(canvas: &mut Canvas, prompt: &str, note: &str) {
    let columns = canvas.width.saturating_sub(2 * MARGIN) / get_raster_width(FontWeight::Bold, RasterHeight::Size24);
    let lines = wrap_text(prompt, columns.max(1));
    let line_height = RasterHeight::Size24.val() + 6;
    let panel = lines.len() * line_height + RasterHeight::Size16.val() + 40;
    let top = canvas.height.saturating_sub(panel);
    for y in top..canvas.height {
        let fade = ((y - top) as f32 / 18.0).min(1.0);
        for x in 0..canvas.width {
            canvas.blend_pixel(x, y, BACKGROUND, 0.62 * fade);
        }
    }
    let mut y = top + 16;
    for line in &lines {
        draw_text(canvas, MARGIN, y, line, FontWeight::Bold, RasterHeight::Size24, 0.96);
        y += line_height;
    }
    draw_text(canvas, MARGIN, y, note, FontWeight::Regular, RasterHeight::Size16, 0.6);
}

fn draw_text(
    canvas: &mut Canvas,
    x: usize,
    y: usize,
    text: &str,
    weight: FontWeight,
    size: RasterHeight,
    strength: f32,
) {
    let advance = get_raster_width(weight, size);
    for (column, character) in text.chars().enumerate() {
        let Some(glyph) = get_raster(character, weight, size).or_else(|| get_raster('?', weight, size)) else {
            continue;
        };
        for (dy, row) in glyph.raster().iter().enumerate() {
            for (dx, coverage) in row.iter().enumerate() {
                canvas.blend_pixel(
                    x + column * advance + dx,
                    y + dy,
                    TEXT_COLOUR,
                    strength * f32::from(*coverage) / 255.0,
                );
            }
        }
    }
}

/// Wraps a text between words into at most three lines; a longer text ends in `...`.
fn wrap_text(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word: String = word.chars().take(columns).collect();
        let full = lines.len() == MAX_LINES;
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            *line = word;
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(&word);
        } else if full {
            let kept: String = line.chars().take(columns.saturating_sub(3)).collect();
            *line = format!("{kept}...");
            break;
        } else {
            lines.push(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_wraps_between_words_and_ends_after_three_lines() {
        assert_eq!(wrap_text("a busy city street", 9), ["a busy", "city", "street"]);
        assert_eq!(wrap_text("one two three four five", 5), ["one", "two", "th..."]);
        assert_eq!(wrap_text("", 5), [""]);
        assert_eq!(wrap_text("abcdefgh", 3), ["abc"]);
    }
}
