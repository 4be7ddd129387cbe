//! An estimate as text.

use maud::{Markup, html};

use crate::estimate::Estimate;
use crate::pages::components::{duration, usd};

/// Renders an estimate. What is not known is left out or named.
pub(super) fn render(estimate: &Estimate) -> Markup {
    let count = |number: Option<u32>| number.map_or_else(|| "not known".to_owned(), |number| number.to_string());
    html! {
        dl.facts {
            div { dt { "Cost" } dd.cost { (estimate.cost_usd.map_or_else(|| "not known".to_owned(), usd)) } }
            div { dt { "Images to generate" } dd { (count(estimate.to_generate)) " of " (estimate.images) } }
            div { dt { "Price of an image" } dd { (usd(estimate.price_per_image_usd)) } }
            div { dt { "Duration" } dd { (estimate.duration.total_seconds.map_or_else(|| "not known".to_owned(), duration)) } }
            div { dt { "Engine" } dd { (estimate.engine) } }
            div { dt { "In the cache" } dd { (count(estimate.cached)) } }
            @if estimate.translation.texts > 0 {
                div {
                    dt { "Texts to translate" }
                    dd {
                        (estimate.translation.texts)
                        @if let Some(known) = estimate.translation.known { ", known: " (known) }
                    }
                }
            }
        }
        @if !estimate.warnings.is_empty() {
            ul.notice.warning { @for warning in &estimate.warnings { li { code { (warning.code) } ": " (warning.message) } } }
        }
        @if !estimate.unknown.is_empty() {
            p.note { "Not known: " (estimate.unknown.join("; ")) }
        }
    }
}
