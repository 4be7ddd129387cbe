//! The call for an image: its file, or a smaller copy.

use axum::body::Body;
use axum::extract::RawQuery;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::image_spec::{ImageDefect, ImageFormat};
use domain::outcome::Asset;
use picture::CopyFormat;
use tracing::warn;
use uuid::Uuid;

use super::Api;
use super::copies::CopyKey;
use super::problem::{Problem, ProblemCode};
use super::request::{Query, UrlPath, not_allowed, parse_job_id};

/// Maximum width of a copy, in pixels.
const MAX_WIDTH: u32 = 8_192;
/// An image of a job never changes; a copy may be made in another way by a later version.
const CACHE_CONTROL: &str = "private, max-age=86400";

/// Get an image
///
/// The stored file, or with `width` a smaller copy: WebP if the header `Accept` names it, otherwise JPEG. A copy is never
/// wider than the image.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job_id}/images/{index}",
    params(
        ("job_id" = String, Path, description = "Id of the job", format = "uuid"),
        ("index" = u32, Path, description = "Position of the description in the command, from 1", minimum = 1),
        ("width" = Option<u32>, Query, description = "Width of the copy, in pixels", minimum = 1, maximum = 8192),
    ),
    responses(
        (status = 200, description = "The image", content_type = "image/png"),
        (status = 304, description = "The client has this image"),
        (status = 404, description = "The image is not known or not completed, or its file is gone", body = ref("#/components/schemas/Problem"), content_type = "application/problem+json"),
    ),
    tag = "images",
)]
pub(super) async fn get_image(
    api: Api,
    UrlPath((job_id, index)): UrlPath<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::parse(query.as_deref(), &["width"])?;
    let (job_id, index) = parse_image_path(&job_id, &index)?;
    let width = query.get("width", &format!("a whole number from 1 to {MAX_WIDTH}"), |text| {
        text.parse::<u32>().ok().filter(|width| (1..=MAX_WIDTH).contains(width))
    })?;
    let not_found = || Problem::new(ProblemCode::NotFound, format!("job {job_id} has no completed image {index}"));
    let asset = api.store.read_completed_image(job_id, index).await?.ok_or_else(not_found)?;
    match width {
        None => send_file(&api, &asset, &headers).await,
        Some(width) => send_copy(&api, &asset, width, &headers).await,
    }
}

/// Parses the id of a job and the index of an image in a path.
pub(crate) fn parse_image_path(job_id: &str, index: &str) -> Result<(Uuid, u32), Problem> {
    let job_id = parse_job_id(job_id)?;
    let number = index.parse::<u32>().ok().filter(|number| *number > 0 && number.to_string() == index);
    Ok((job_id, number.ok_or_else(|| not_allowed("index", index, "a whole number of at least 1"))?))
}

async fn send_file(api: &Api, asset: &Asset, headers: &HeaderMap) -> Result<Response, Problem> {
    let etag = format!("\"{}\"", asset.sha256);
    if has_etag(headers, &etag) {
        return Ok(not_modified(&etag));
    }
    let (size, file) = api.storage.open_file(&asset.file_path).await?.ok_or_else(|| missing_file(asset))?;
    let media_type = match asset.format {
        ImageFormat::Png => "image/png",
        ImageFormat::Jpeg => "image/jpeg",
    };
    let mut response = image_response(media_type, &etag, Body::from_stream(file));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    Ok(response)
}

async fn send_copy(api: &Api, asset: &Asset, width: u32, headers: &HeaderMap) -> Result<Response, Problem> {
    let width = width.min(asset.width);
    let (format, media_type) =
        if accepts_webp(headers) { (CopyFormat::Webp, "image/webp") } else { (CopyFormat::Jpeg, "image/jpeg") };
    let etag = format!("\"{}-{width}-{}\"", asset.sha256, media_type.trim_start_matches("image/"));
    let mut response = if has_etag(headers, &etag) {
        not_modified(&etag)
    } else {
        let key = CopyKey { sha256: &asset.sha256, width, format };
        let read = async || api.storage.read(&asset.file_path, asset.size_bytes..=asset.size_bytes).await;
        let copy = api.copies.get(key, async || read().await.map_err(Problem::from)).await?;
        image_response(media_type, &etag, Body::from(copy.ok_or_else(|| missing_file(asset))?))
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

fn image_response(media_type: &'static str, etag: &str, body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, CACHE_CONTROL),
        (header::ETAG, etag),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (StatusCode::OK, headers, body).into_response()
}

fn not_modified(etag: &str) -> Response {
    (StatusCode::NOT_MODIFIED, [(header::CACHE_CONTROL, CACHE_CONTROL), (header::ETAG, etag)]).into_response()
}

/// The row says that the image is completed, but its file was removed or changed.
fn missing_file(asset: &Asset) -> Problem {
    warn!(path = asset.file_path, "the file of a completed image is missing or has another size");
    Problem::new(ProblemCode::NotFound, "the file of the image is gone")
}

impl From<ImageDefect> for Problem {
    fn from(defect: ImageDefect) -> Self {
        warn!(%defect, "no copy can be made of a stored image: its file is damaged");
        Self::new(ProblemCode::NotFound, "the file of the image is damaged")
    }
}

/// Whether the client names WebP, other than to refuse it.
fn accepts_webp(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_webp = parts.next().is_some_and(|media_type| media_type.eq_ignore_ascii_case("image/webp"));
        let is_refused = parts.any(|part| {
            let quality = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            quality.is_some_and(|quality| quality.parse::<f32>().is_ok_and(|quality| quality <= 0.0))
        });
        is_webp && !is_refused
    })
}

/// Whether the client has the response with this `ETag`.
fn has_etag(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().expect("a header"))])
    }

    #[test]
    fn webp_is_sent_to_clients_that_name_it() {
        for (accept, expected) in [
            ("image/avif,image/webp,image/png;q=0.8,*/*;q=0.5", true),
            ("image/webp;q=0.1", true),
            ("IMAGE/WEBP", true),
            ("image/webp;q=0", false),
            ("image/webp; q=0.0, image/jpeg", false),
            ("*/*", false),
            ("image/*", false),
            ("", false),
        ] {
            assert_eq!(accepts_webp(&headers(header::ACCEPT, accept)), expected, "{accept}");
        }
        assert!(!accepts_webp(&HeaderMap::new()));
    }

    #[test]
    fn etag_is_found_in_a_list() {
        for (value, expected) in
            [("\"a\"", true), ("\"b\", W/\"a\"", true), ("*", true), ("\"b\"", false), ("a", false)]
        {
            assert_eq!(has_etag(&headers(header::IF_NONE_MATCH, value), "\"a\""), expected, "{value}");
        }
    }
}
