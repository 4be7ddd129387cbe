//! Response decoding for fuzz targets; not part of the public API.

use reqwest::header::HeaderMap;

use crate::client::error_for_status;
use crate::engine::ApiVersion;
use crate::error::Error;
use crate::http::parse_head;
use crate::response::{self, GeneratedImage};

/// Decodes the images of a response, like the client does.
pub fn decode_response(
    family: ApiVersion,
    status: u16,
    headers: &HeaderMap,
    body: Vec<u8>,
) -> Result<Vec<GeneratedImage>, Error> {
    let mut response = parse_head(status, headers);
    response.body = body.into();
    Ok(response::decode(family, &error_for_status(response)?)?.images)
}
