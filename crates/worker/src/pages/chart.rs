//! Charts as SVG, drawn here. Colours come from the style.

use maud::{Markup, PreEscaped, html};

/// Width and height of a sparkline in its own units.
const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 40.0;

/// A row of bars, oldest first, without axes. `label` says what they show.
pub(super) fn sparkline(values: &[f64], label: &str) -> Markup {
    bars(values, &[], label)
}

/// A row of bars; each has the title of the same position, which is shown when it is pointed at.
pub(super) fn bars(values: &[f64], titles: &[String], label: &str) -> Markup {
    let max = values.iter().copied().fold(0.0, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "a chart has few bars")]
    let step = WIDTH / values.len().max(1) as f64;
    html! {
        svg.chart viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(label) preserveAspectRatio="none" {
            @for (number, value) in values.iter().enumerate() {
                @let height = if max > 0.0 { (value / max * HEIGHT).max(if *value > 0.0 { 1.0 } else { 0.0 }) } else { 0.0 };
                (bar(number, step, height, titles.get(number)))
            }
            line x1="0" y1=(HEIGHT) x2=(WIDTH) y2=(HEIGHT) {}
        }
    }
}

fn bar(number: usize, step: f64, height: f64, title: Option<&String>) -> Markup {
    #[expect(clippy::cast_precision_loss, reason = "a chart has few bars")]
    let x = number as f64 * step;
    html! {
        rect x=(format!("{x:.1}")) y=(format!("{:.1}", HEIGHT - height)) width=(format!("{:.1}", (step - 1.0).max(0.5)))
            height=(format!("{height:.1}")) {
            @if let Some(title) = title { (PreEscaped("<title>")) (title) (PreEscaped("</title>")) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_bar_fills_the_chart_and_an_empty_one_has_none() {
        let svg = sparkline(&[0.0, 5.0, 10.0, 0.001], "images an hour").into_string();
        assert!(svg.contains(r#"aria-label="images an hour""#), "{svg}");
        let heights: Vec<&str> =
            svg.split("<rect").skip(1).filter_map(|bar| bar.split(r#"height=""#).nth(1)?.split('"').next()).collect();
        assert_eq!(heights, ["0.0", "20.0", "40.0", "1.0"]);
        assert!(!sparkline(&[0.0, 0.0], "none").into_string().contains("NaN"));
        assert!(bars(&[1.0], &["<b>".to_owned()], "").into_string().contains("<title>&lt;b&gt;</title>"));
    }
}
