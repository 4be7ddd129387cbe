//! Account endpoints: credit balance and list of engines.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Shared;
use crate::api_error::ApiError;
use crate::rules::v1;

pub(super) async fn balance(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Response, ApiError> {
    shared.check_key(&headers)?;
    let (credits, status) = {
        let state = shared.lock();
        (state.credits, state.balance_status)
    };
    if let Some(status) = status {
        return Err(ApiError::from_status(status));
    }
    Ok(Json(json!({"credits": credits})).into_response())
}

pub(super) async fn engines(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Response, ApiError> {
    shared.check_key(&headers)?;
    let engine = |id: &str, name: &str| json!({"id": id, "name": name, "description": name, "type": "PICTURE"});
    let engines = [engine(v1::SDXL, "Stable Diffusion XL v1.0")];
    Ok(Json(json!(engines)).into_response())
}
