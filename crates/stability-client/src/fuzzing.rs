//! The reading of answers for fuzz targets. No part of the API.

use reqwest::header::HeaderMap;

use crate::answer::{self, Picture};
use crate::client::checked;
use crate::engine::Family;
use crate::error::Error;
use crate::http::read_head;

/// Reads what an answer holds, as if it had come from the API.
pub fn read_answer(family: Family, status: u16, headers: &HeaderMap, body: Vec<u8>) -> Result<Vec<Picture>, Error> {
    let mut response = read_head(status, headers);
    response.body = body.into();
    Ok(answer::decode(family, &checked(response)?)?.pictures)
}
