//! Renders panels as SVG: series over time, or the last value in large digits.

use std::fmt::Write;

/// Width of a column of the grid in pixels; the grid has 24 columns.
const COLUMN_WIDTH: f64 = 54.0;
/// Height of a row of the grid in pixels.
const ROW_HEIGHT: f64 = 24.0;
const COLOURS: [&str; 8] = ["#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#e02f44", "#b877d9", "#37872d", "#8ab8ff"];

pub(super) struct Panel {
    /// `row`, `stat` or `timeseries`.
    pub(super) kind: String,
    pub(super) title: String,
    /// Grafana's name of the unit.
    pub(super) unit: String,
    /// x, y, width and height in the grid.
    pub(super) grid_position: [u64; 4],
    pub(super) series: Vec<Series>,
}

pub(super) struct Series {
    pub(super) legend: String,
    /// Seconds since 1970, and value of each point.
    pub(super) points: Vec<(f64, f64)>,
}

/// Renders all panels at their positions in the dashboard; time runs from left to right.
pub(super) fn render_svg(panels: &[Panel], from: f64, to: f64) -> String {
    let bottom = panels.iter().map(|panel| panel.grid_position[1] + panel.grid_position[3]).max().unwrap_or_default();
    let (width, height) = (24.0 * COLUMN_WIDTH, to_pixels(bottom, ROW_HEIGHT));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#ccccdc\">\n\
         <rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#111217\"/>\n"
    );
    for panel in panels {
        let [x, y, w, h] = panel.grid_position;
        let frame = Rect {
            x: to_pixels(x, COLUMN_WIDTH),
            y: to_pixels(y, ROW_HEIGHT),
            w: to_pixels(w, COLUMN_WIDTH),
            h: to_pixels(h, ROW_HEIGHT),
        };
        panel.draw(&mut svg, frame, (from, to));
    }
    svg + "</svg>\n"
}

#[expect(clippy::cast_precision_loss, reason = "some dozens")]
fn to_pixels(count: u64, each: f64) -> f64 {
    count as f64 * each
}

#[derive(Clone, Copy)]
struct Rect {
    x: f64,
    y: f64,
    w: f64,
    h: f64,
}

impl Panel {
    fn draw(&self, svg: &mut String, Rect { x, y, w, h }: Rect, time: (f64, f64)) {
        let title = escape_xml(&self.title);
        if self.kind == "row" {
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.0}\" font-size=\"14\" font-weight=\"bold\">{title}</text>",
                x + 8.0,
                y + 17.0
            );
            return;
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"2\" fill=\"#181b1f\" stroke=\"#2c3235\"/>\n<text x=\"{:.0}\" y=\"{:.0}\" font-size=\"12\" font-weight=\"bold\">{title}</text>",
            x + 3.0,
            y + 3.0,
            w - 6.0,
            h - 6.0,
            x + 12.0,
            y + 20.0
        );
        if self.kind == "stat" {
            self.draw_values(svg, Rect { x, y, w, h });
        } else {
            let legend = self.draw_legend(svg, Rect { x, y, w, h });
            self.draw_lines(svg, Rect { x: x + 52.0, y: y + 30.0, w: w - 64.0, h: h - 42.0 - legend }, time);
        }
    }

    fn draw_values(&self, svg: &mut String, Rect { x, y, w, h }: Rect) {
        for (position, line) in self.series.iter().enumerate() {
            let at = y + h / 2.0 + 8.0 + 32.0 * to_f64(position);
            let value = line.points.last().map_or_else(String::new, |(_, value)| self.format_value(*value));
            let legend_in_title = self.title.to_lowercase().contains(&line.legend);
            let legend =
                if self.series.len() == 1 && legend_in_title { String::new() } else { format!(" {}", line.legend) };
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{at:.0}\" font-size=\"26\" text-anchor=\"middle\" fill=\"{}\">{}<tspan font-size=\"12\">{}</tspan></text>",
                x + w / 2.0,
                COLOURS[position % COLOURS.len()],
                escape_xml(&value),
                escape_xml(&legend)
            );
        }
    }

    /// Draws the legend at the bottom of the panel and returns its height.
    fn draw_legend(&self, svg: &mut String, Rect { x, y, w, h }: Rect) -> f64 {
        let mut lines: Vec<Vec<(usize, f64)>> = vec![Vec::new()];
        let mut at = 0.0;
        for (position, line) in self.series.iter().enumerate() {
            let width = 24.0 + 6.0 * to_f64(line.legend.chars().count());
            if at + width > w - 24.0 && at > 0.0 {
                lines.push(Vec::new());
                at = 0.0;
            }
            lines.last_mut().expect("the list is never empty").push((position, at));
            at += width;
        }
        let height = 14.0 * to_f64(lines.len());
        for (below, line) in lines.iter().enumerate() {
            let base = y + h - 12.0 - height + 14.0 * to_f64(below + 1);
            for (position, at) in line {
                let _ = writeln!(
                    svg,
                    "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"10\" height=\"3\" fill=\"{}\"/><text x=\"{:.0}\" y=\"{base:.0}\">{}</text>",
                    x + 12.0 + at,
                    base - 5.0,
                    COLOURS[position % COLOURS.len()],
                    x + 26.0 + at,
                    escape_xml(&self.series[*position].legend)
                );
            }
        }
        height
    }

    fn draw_lines(&self, svg: &mut String, Rect { x, y, w, h }: Rect, (from, to): (f64, f64)) {
        let values = self.series.iter().flat_map(|line| line.points.iter().map(|(_, value)| *value));
        let highest = values.fold(0.0_f64, f64::max);
        let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
        for part in 0..=2_u8 {
            let share = f64::from(part) / 2.0;
            let at = y + h - h * share;
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.0}\" x2=\"{:.0}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#2c3235\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#9a9aa5\">{}</text>",
                x + w,
                x - 6.0,
                at + 4.0,
                escape_xml(&self.format_value(top * share))
            );
        }
        for (position, line) in self.series.iter().enumerate() {
            let colour = COLOURS[position % COLOURS.len()];
            // Points that are 2.5 seconds or more apart are not connected.
            for part in line.points.chunk_by(|(one, _), (next, _)| next - one < 2.5) {
                let place = |(at, value): &(f64, f64)| {
                    format!("{:.1},{:.1}", x + w * (at - from) / (to - from), y + h - h * value / top)
                };
                let points: Vec<String> = part.iter().map(place).collect();
                let _ = writeln!(
                    svg,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
                    points.join(" ")
                );
            }
        }
        if self.series.iter().all(|line| line.points.is_empty()) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#9a9aa5\">No data</text>",
                x + w / 2.0,
                y + h / 2.0
            );
        }
    }

    /// Formats a value in the panel's unit.
    fn format_value(&self, value: f64) -> String {
        let digits = |value: f64| match value {
            value if value.abs() >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
            value if value.abs() >= 10.0 => format!("{value:.1}"),
            value => format!("{value:.2}"),
        };
        match self.unit.as_str() {
            "s" if value.abs() < 1.0 && value != 0.0 => format!("{} ms", digits(value * 1e3)),
            "s" => format!("{} s", digits(value)),
            "currencyUSD" => format!("${value:.2}"),
            "percentunit" => format!("{}%", digits(value * 100.0)),
            _ => digits(value),
        }
    }
}

fn to_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
