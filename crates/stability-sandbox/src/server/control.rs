//! Control endpoints for tests: the ledger and injected faults.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Shared;
use crate::api_error::ApiError;
use crate::faults::FaultSpec;
use crate::ledger::Ledger;

pub(super) async fn ledger(State(shared): State<Arc<Shared>>) -> Json<Ledger> {
    Json(shared.lock().ledger.clone())
}

pub(super) async fn inject_fault(
    State(shared): State<Arc<Shared>>,
    Json(spec): Json<FaultSpec>,
) -> Result<StatusCode, ApiError> {
    let result = shared.lock().faults.inject(spec);
    result.map(|()| StatusCode::NO_CONTENT).map_err(|message| ApiError::new(400, "bad_request", message))
}

pub(super) async fn clear_faults(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.lock().faults.clear();
    StatusCode::NO_CONTENT
}
