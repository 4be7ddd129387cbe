//! What tests ask of the sandbox itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::Shared;
use crate::faults::FaultOrder;
use crate::ledger::Ledger;
use crate::reply::Refusal;

pub(super) async fn ledger(State(shared): State<Arc<Shared>>) -> Json<Ledger> {
    Json(shared.lock().ledger.clone())
}

pub(super) async fn order_fault(
    State(shared): State<Arc<Shared>>,
    Json(order): Json<FaultOrder>,
) -> Result<StatusCode, Refusal> {
    let ordered = shared.lock().faults.order(order);
    ordered.map(|()| StatusCode::NO_CONTENT).map_err(|message| Refusal::new(400, "bad_request", message))
}

pub(super) async fn clear_faults(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.lock().faults.clear();
    StatusCode::NO_CONTENT
}
