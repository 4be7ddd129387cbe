//! Style, scripts and icon of the pages. Nothing is loaded from other hosts.
//!
//! `htmx-2.0.11.min.js` is the unchanged file `dist/htmx.min.js` of the npm package `htmx.org` (licence: 0BSD).

use std::sync::LazyLock;

use axum::extract::{Path, RawQuery};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::digest;

/// A file, whose address changes with its content.
pub(super) struct StaticFile {
    name: &'static str,
    media_type: &'static str,
    content: &'static str,
    version: LazyLock<String>,
}

macro_rules! static_file {
    ($name:literal, $media_type:literal) => {
        StaticFile {
            name: $name,
            media_type: $media_type,
            content: include_str!(concat!("static/", $name)),
            version: LazyLock::new(|| digest::sha256(include_str!(concat!("static/", $name)))[..12].to_owned()),
        }
    };
}

pub(super) static STYLE: StaticFile = static_file!("style.css", "text/css; charset=utf-8");
pub(super) static SCRIPT: StaticFile = static_file!("page.js", "text/javascript; charset=utf-8");
pub(super) static HTMX: StaticFile = static_file!("htmx-2.0.11.min.js", "text/javascript; charset=utf-8");
pub(super) static ICON: StaticFile = static_file!("icon.svg", "image/svg+xml");

impl StaticFile {
    /// The address of the file.
    pub(super) fn path(&self) -> String {
        format!("/static/{}?{}", self.name, *self.version)
    }
}

/// Sends a file. It is kept by browsers only under its own address: during an upgrade, a page of one version may ask another
/// one for its files.
pub(super) async fn send(Path(name): Path<String>, RawQuery(version): RawQuery) -> Response {
    let file = [&STYLE, &SCRIPT, &HTMX, &ICON].into_iter().find(|file| file.name == name);
    let Some(file) = file else { return StatusCode::NOT_FOUND.into_response() };
    let is_own = version.as_deref() == Some(file.version.as_str());
    let cache = if is_own { "public, max-age=31536000, immutable" } else { "no-cache" };
    ([(header::CONTENT_TYPE, file.media_type), (header::CACHE_CONTROL, cache)], file.content).into_response()
}
